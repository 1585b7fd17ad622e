import numpy as np
import pytest
from PIL import Image

from datamodules.decoding.readers import image_size, read_grey
from datamodules.files.errors import UnreadableImageError

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def save(path, array, mode=None, **settings):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **settings)
    return path


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_eight_bit_modes_give_the_stored_values(tmp_path, mode):
    values = read_grey(save(tmp_path / "a.png", GREY, mode))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, GREY)


def test_sixteen_bits_are_neither_clipped_nor_wrapped(tmp_path):
    stored = np.array([[0, 255, 256, 4095], [32767, 32768, 65534, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(read_grey(save(tmp_path / "a.png", stored)), stored.astype(np.float32))


def test_black_and_white(tmp_path):
    Image.fromarray(GREY > 100).save(tmp_path / "a.png")
    assert set(np.unique(read_grey(tmp_path / "a.png"))) == {0.0, 255.0}


def test_jpeg_grey_stored_as_colour(tmp_path):
    path = save(tmp_path / "a.jpg", GREY, "RGB", quality=95)
    assert np.abs(read_grey(path) - GREY).max() < 12


def test_colour_image_is_refused(tmp_path):
    colour = np.zeros((8, 8, 3), np.uint8)
    colour[..., 0] = 200
    with pytest.raises(UnreadableImageError, match=r"^a.png: is a colour image"):
        read_grey(save(tmp_path / "a.png", colour))


def test_transparent_image_is_refused(tmp_path):
    rgba = np.zeros((8, 8, 4), np.uint8)
    with pytest.raises(UnreadableImageError, match=r"^a.png: is partly transparent"):
        read_grey(save(tmp_path / "a.png", rgba))


def test_header_gives_the_size(tmp_path):
    assert image_size(save(tmp_path / "a.png", np.zeros((5, 9), np.uint8))) == (5, 9)
    (tmp_path / "b.png").write_bytes(b"no image")
    assert image_size(tmp_path / "b.png") is None
