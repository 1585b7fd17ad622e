"""Which stored values are black and white: declared, said by the file, or refused."""

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from datamodules.decoding.readers import read_grey
from datamodules.decoding.value_range import ends_of, range_of, share_used, unlike_shares
from datamodules.files.errors import DataError, UnreadableImageError
from datamodules.mammography import read_picture
from datamodules.records.records import Intensity
from datamodules.writing.writers import write_png8, write_png16


def saved(path, values, **options):
    Image.fromarray(values).save(path, **options)
    return path


def found(path, declared=None):
    return range_of(path, read_grey(path), declared, "value_range")


def test_bytes_say_their_range_and_a_declared_one_holds(tmp_path):
    path = saved(tmp_path / "a.png", np.array([[3, 200]], np.uint8))
    assert found(path) == (0, 255) and found(path, (0, 200)) == (0, 200)
    with pytest.raises(UnreadableImageError, match=r"a.png: values 3 .. 200 lie outside value_range=\[0,199\]"):
        found(path, (0, 199))
    with pytest.raises(UnreadableImageError, match=r"a.png: has 8 bits, which do not reach value_range=\[0,4095\]"):
        found(path, (0, 4095))  # among 12-bit files it would be nearly black


@pytest.mark.parametrize("highest", [9, 4095, 65535])
def test_sixteen_bits_say_no_range_whatever_they_hold(tmp_path, highest):
    path = saved(tmp_path / "a.png", np.array([[0, highest]], np.uint16))
    with pytest.raises(DataError, match=rf"a.png: has 16 bits with values 0 .. {highest}, .*set value_range, ") as e:
        found(path)
    assert not isinstance(e.value, UnreadableImageError)
    assert found(path, (0, 65535)) == (0, 65535)


@pytest.mark.parametrize("values", [np.float32([[0, 0.5]]), np.int32([[0, 70000]]), np.int32([[-5, 9]])])
def test_other_numbers_say_no_range(tmp_path, values):
    with pytest.raises(DataError, match="values of more than 16 bits or fractions"):
        found(saved(tmp_path / "a.tif", values))


def test_deep_files_of_a_generator_say_that_they_are_full(tmp_path):
    image = torch.linspace(-0.5, 0.5, 64).reshape(8, 8)
    for intensity in (None, Intensity(-1000, 1000, 12, "HU", "Hounsfield units")):
        write_png16(image, tmp_path / "a.png", intensity)
        assert found(tmp_path / "a.png") == (0, 65535)
        np.testing.assert_allclose(2 * read_picture(tmp_path / "a.png", None) - 1, image, atol=2e-5)
    write_png8(image, tmp_path / "a.png")
    assert found(tmp_path / "a.png") == (0, 255)


def test_another_programs_mark_says_nothing(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", "Mirage viewer")
    text.add_text("Synthetic", "yes")
    with pytest.raises(DataError, match="has 16 bits"):
        found(saved(tmp_path / "a.png", np.uint16([[0, 9]]), pnginfo=text))


def test_unlike_shares_are_named():
    full = np.random.default_rng(0).uniform(-1, 1, (20, 1, 32, 32))
    twelve_in_sixteen = (full + 1) / 16 - 1
    twelve_in_sixteen[0, 0, 0, :4] = 1.0  # a burnt-in letter
    shares = share_used(map(ends_of, full)), share_used(map(ends_of, twelve_in_sixteen))
    assert shares == pytest.approx((0.998, 0.0624), abs=0.002)
    said = unlike_shares(*shares, "value_range", "generated_value_range")
    assert "real images use 100% of their range of values, generated ones 6%" in said
    assert "value_range or generated_value_range" in said
    assert unlike_shares(0.0, 1.0, "a", "b") and unlike_shares(1.0, 0.0, "a", "b")  # all black
    assert unlike_shares(0.06, 0.06, "a", "b")  # both of 12 bits, both wrong
    assert not unlike_shares(0.9, 0.4, "a", "b") and not unlike_shares(0.3, 0.3, "a", "b")
