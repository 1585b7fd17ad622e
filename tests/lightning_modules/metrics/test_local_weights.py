import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from lightning_modules.metrics.features import ExtractorError
from lightning_modules.metrics.local_weights import LocalNetwork, Preprocessing, read_state


class Means(LocalNetwork):
    title, dimensions, score_name = "means", 3, "frechet_means"
    preprocessing = Preprocessing(size=2)

    def build(self, state):
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), self.fill(nn.Linear(3, 3), state))


def test_values_as_described():
    images = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    found = Preprocessing(size=4, scale=(0.0, 255.0), mean=(1.0, 2.0, 3.0), std=(2.0,))(images)
    assert found.shape == (3, 3, 4, 4)
    expected = torch.tensor([[-0.5, -1.0, -1.5], [63.25, 62.75, 62.25], [127.0, 126.5, 126.0]])
    torch.testing.assert_close(found[:, :, 1, 2], expected)
    colour = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert Preprocessing(size=4, scale=(-1.0, 1.0), bgr=True)(colour)[0, :, 0, 0].tolist() == [1.0, 0.0, -1.0]
    assert Preprocessing(size=4, scale=(-1.0, 1.0), channels=1)(colour).unique().tolist() == [0.0]


@pytest.mark.parametrize("shape", [(2, 6), (6, 2), (3, 3)])
def test_the_square_in_the_middle(shape):
    images = torch.rand(1, 1, *shape) * 2 - 1
    side = min(shape)
    found = Preprocessing(size=side, scale=(-1.0, 1.0), channels=1, crop=True)(images)
    torch.testing.assert_close(found, v2.functional.center_crop(images, [side, side]))


@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_resizing_is_pillows(resize):
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(60, 196, (40, 52), generator=generator, dtype=torch.uint8)
    expected = np.array(Image.fromarray(levels.numpy()).resize((20, 20), Image.Resampling[resize.upper()]))
    resized = Preprocessing(size=20, scale=(0.0, 255.0), channels=1, resize=resize)
    found = resized((levels.float() / 127.5 - 1.0).view(1, 1, 40, 52))
    assert (found[0, 0] - torch.from_numpy(expected)).abs().max() < 1.01  # Pillow rounds after each axis
    edge = torch.ones(1, 1, 40, 40)
    edge[..., :20] = -1.0  # bicubic overshoots here
    assert resized(edge).min() == 0 and resized(edge).max() == 255


def test_said_in_the_fingerprint():
    said = str(Preprocessing(size=518, mean=(0.5307,), std=(0.2583,), crop=True, resize="bicubic"))
    assert said == (
        "square in the middle, antialiased bicubic to 518x518, grey repeated, scale (0.0, 1.0), mean (0.5307,), "
        "standard deviation (0.2583,)"
    )
    assert "colour averaged, colour as blue" in str(Preprocessing(size=2, channels=1, bgr=True))


def test_images_in_parts_are_images_at_once(tmp_path):
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "means.pt")
    extractor = Means(str(tmp_path / "means.pt"))
    with pytest.raises(RuntimeError, match=r"call prepare\(\) and load\(\)"):
        extractor(torch.zeros(1, 1, 4, 4))
    extractor.load()
    object.__setattr__(extractor, "preprocessing", Preprocessing(size=400))  # of which a pass takes two
    seen = []
    extractor.network.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    images = torch.rand(5, 1, 400, 400) * 2 - 1
    found = extractor(images)
    assert seen == [2, 2, 1]
    torch.testing.assert_close(found[3:4], extractor(images[3:4]))
    with pytest.raises(ValueError, match="means takes 1 or 3 channels, got 2"):
        extractor(torch.zeros(1, 2, 4, 4))


def test_files_of_others_are_refused_and_not_run(tmp_path):
    ran = tmp_path / "ran"

    class Code:
        def __reduce__(self):
            return ran.touch, ()

    torch.save(nn.Linear(3, 3), tmp_path / "network.pt")
    torch.save({"weight": Code()}, tmp_path / "code.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Code(), protocol=2))
    (tmp_path / "empty.pt").touch()
    (tmp_path / "empty.safetensors").touch()
    for name, message in (
        (
            "network.pt",
            r"would run code to be read\); .* torch.save\(torch.load\('.*network.pt', .*\).state_dict\(\), 'weig",
        ),
        ("code.pt", "would run code to be read"),
        ("old.pt", "cannot be read as a state dict"),
        ("empty.pt", "cannot be read as a state dict"),
        ("empty.safetensors", "cannot be read as a state dict"),
    ):
        with pytest.raises(ExtractorError, match=message):
            read_state(tmp_path / name)
    assert not ran.exists()
    torch.save({"epoch": 3, "state_dict": nn.Linear(3, 3).state_dict()}, tmp_path / "checkpoint.pt")
    assert read_state(tmp_path / "checkpoint.pt").keys() == {"weight", "bias"}
    with pytest.raises(ValueError, match=r"no such file; it should be a state dict of means \(experiments/docs/extra"):
        Means(str(tmp_path / "missing.pt"))


@pytest.mark.parametrize("nested", [False, True])
def test_the_prefix_of_parallel_training_is_taken_off(tmp_path, nested):
    network = nn.Linear(3, 3)
    state = nn.ModuleDict({"module": network}).state_dict()
    torch.save({"state_dict": state} if nested else state, tmp_path / "parallel.pt")
    found = read_state(tmp_path / "parallel.pt")
    assert found.keys() == {"weight", "bias"} and torch.equal(found["weight"], network.weight)


@pytest.mark.parametrize("content", [{1: torch.zeros(2)}, {"state_dict": {1: torch.zeros(2)}}, [1, 2], {"epoch": 3}])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ExtractorError, match="holds no state dict"):
        read_state(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": torch.full((3, 3), float("nan"))}, "it has numbers that are not finite in weight$"),
        ({"weight": torch.zeros(3, 3, dtype=torch.int8)}, "it has integers or complex numbers in weight$"),
        ({"weight": torch.zeros(3, 3, dtype=torch.cfloat)}, "it has integers or complex numbers in weight$"),
        ({"weight": torch.zeros(3, 2)}, "it has other shapes of weight$"),
        ({"bias": None, "b": torch.zeros(3)}, "it misses bias; it has too many b$"),
    ],
)
def test_weights_of_other_networks_and_broken_ones_are_refused(tmp_path, changed, message):
    state = {**nn.Linear(3, 3).state_dict(), **changed}
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, tmp_path / "means.pt")
    with pytest.raises(ExtractorError, match=message):
        Means(str(tmp_path / "means.pt")).load()


def test_half_precision_is_read(tmp_path):
    torch.save(nn.Linear(3, 3).half().state_dict(), tmp_path / "half.pt")
    extractor = Means(str(tmp_path / "half.pt"))
    extractor.load()
    assert extractor(torch.zeros(1, 1, 4, 4)).dtype == torch.float32


def test_the_command_of_the_refusal_converts(tmp_path, monkeypatch):
    """What a user is told to do with a pickled network is done."""
    network = nn.Linear(3, 3)
    torch.save(network, tmp_path / "network.pt")
    with pytest.raises(ExtractorError) as refused:
        read_state(tmp_path / "network.pt")
    command = str(refused.value).partition('python -c "')[2].removesuffix('"')
    monkeypatch.chdir(tmp_path)
    exec(command)
    assert torch.equal(read_state(tmp_path / "weights.pt")["weight"], network.weight)
