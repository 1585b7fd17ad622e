import hashlib

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from lightning_modules.metrics.features import ExtractorError
from lightning_modules.metrics.radiology_networks import (
    RadImageNetKerasResNet50,
    RadImageNetResNet50,
    TorchXRayVisionDenseNet121,
)

STAGES = (3, 4, 6, 3)
IMAGES = torch.rand(2, 3, 250, 230, generator=torch.Generator().manual_seed(1)) * 2 - 1


def random_weights(shapes):
    """Weights of these shapes that keep values of one size from layer to layer."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            state[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            size = torch.Size(shape[1:]).numel() if len(shape) > 1 else 100
            state[name] = torch.randn(shape, generator=generator) * size**-0.5
    return state


def norm_shapes(name, width):
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}


class Backbone(nn.Module):
    """As in the authors' pytorch_example.ipynb."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(*list(torchvision.models.resnet50(weights=None).children())[:9])

    def forward(self, x):
        return self.backbone(x)


def loaded(cls, state, path):
    torch.save(state, path)
    extractor = cls(str(path))
    extractor.prepare()
    extractor.load()
    assert extractor.identity()["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert extractor.dimensions == extractor(IMAGES[:1]).shape[1]
    return extractor.eval()


@pytest.fixture(scope="module")
def authors():
    backbone = Backbone().eval()
    shapes = {name: tuple(value.shape) for name, value in backbone.state_dict().items() if value.ndim}
    backbone.load_state_dict(random_weights(shapes), strict=False)
    return backbone


def test_radimagenet_as_its_authors_call_it(authors, tmp_path):
    state = authors.state_dict()
    assert {"backbone.0.weight", "backbone.1.running_mean", "backbone.7.2.bn3.bias"} < state.keys()
    extractor = loaded(RadImageNetResNet50, state, tmp_path / "ResNet50.pt")
    levels = (IMAGES + 1) * 127.5
    resized = F.interpolate((levels - 127.5) * 2 / 255, (224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = authors(resized[:, [2, 1, 0]]).flatten(1)
    torch.testing.assert_close(extractor(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert extractor.score_name == "frechet_radimagenet_resnet50" and not extractor.training
    grey = IMAGES[:, :1]
    torch.testing.assert_close(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)))


def keras_shapes():
    """As Keras' ResNet50 without its top, in the names of Warvito/radimagenet-models."""

    def convolution(name, to, of, size):
        return {f"{name}.weight": (to, of, size, size), f"{name}.bias": (to,)}

    shapes = convolution("conv1", 64, 3, 7) | norm_shapes("bn1", 64)
    before = 64
    for stage, blocks in enumerate(STAGES):
        width = 64 * 2**stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            for number, (to, of, size) in enumerate(((width, before, 1), (width, width, 3), (4 * width, width, 1)), 1):
                shapes |= convolution(f"{name}.conv{number}", to, of, size) | norm_shapes(f"{name}.bn{number}", to)
            if block == 0:
                shapes |= convolution(f"{name}.downsample.0", 4 * width, before, 1)
                shapes |= norm_shapes(f"{name}.downsample.1", 4 * width)
            before = 4 * width
    return shapes


def keras_resnet50(state, x):
    """Keras' ResNet50 (keras/applications/resnet.py): biases, the stride in the first 1x1, epsilon 1.001e-5."""

    def convolution(name, x, stride=1, padding=0):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding)

    def norm(name, x):
        mean, var, weight, bias = (
            state[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1.001e-5).sqrt() * weight + bias

    x = norm("bn1", convolution("conv1", x, 2, 3)).relu()
    x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)
    for stage, blocks in enumerate(STAGES):
        for block in range(blocks):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            y = norm(f"{name}.bn1", convolution(f"{name}.conv1", x, stride)).relu()
            y = norm(f"{name}.bn2", convolution(f"{name}.conv2", y, 1, 1)).relu()
            y = norm(f"{name}.bn3", convolution(f"{name}.conv3", y))
            if not block:
                x = norm(f"{name}.downsample.1", convolution(f"{name}.downsample.0", x, stride))
            x = (x + y).relu()
    return x.mean(dim=(2, 3))


def test_radimagenet_converted_from_keras(tmp_path):
    state = random_weights(keras_shapes())
    extractor = loaded(RadImageNetKerasResNet50, state, tmp_path / "RadImageNet-ResNet50_notop.pth")
    resized = F.interpolate((IMAGES + 1) / 2, (224, 224), mode="bilinear", antialias=True)
    expected = keras_resnet50(state, resized[:, [2, 1, 0]] - torch.tensor([0.406, 0.456, 0.485]).view(1, 3, 1, 1))
    torch.testing.assert_close(extractor(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert {module.eps for module in extractor.modules() if isinstance(module, nn.BatchNorm2d)} == {1.001e-5}
    assert "mean (0.406, 0.456, 0.485)" in extractor.identity()["preprocessing"]


def test_the_two_files_of_radimagenet_are_told_apart(authors, tmp_path):
    torch.save(random_weights(keras_shapes()), tmp_path / "keras.pth")
    torch.save(authors.state_dict(), tmp_path / "ResNet50.pt")
    with pytest.raises(ExtractorError, match=r"keras\.pth is .* name the class .*\.RadImageNetKerasResNet50"):
        RadImageNetResNet50(str(tmp_path / "keras.pth")).load()
    with pytest.raises(ExtractorError, match=r"conv1\.bias is not in it; .* name the class .*\.RadImageNetResNet50"):
        RadImageNetKerasResNet50(str(tmp_path / "ResNet50.pt")).load()
    torch.save(torchvision.models.densenet121(weights=None).state_dict(), tmp_path / "densenet.pt")
    with pytest.raises(ExtractorError, match="is no state dict of RadImageNet ResNet-50, PyTorch: it misses bn1"):
        RadImageNetResNet50(str(tmp_path / "densenet.pt")).load()


def xrv_shapes():
    """As torchxrayvision's DenseNet: 18 findings, one channel."""
    shapes = {"features.conv0.weight": (64, 1, 7, 7)} | norm_shapes("features.norm0", 64)
    width = 64
    for block, layers in enumerate((6, 12, 24, 16), 1):
        for layer in range(1, layers + 1):
            name = f"features.denseblock{block}.denselayer{layer}"
            shapes |= norm_shapes(f"{name}.norm1", width) | {f"{name}.conv1.weight": (128, width, 1, 1)}
            shapes |= norm_shapes(f"{name}.norm2", 128) | {f"{name}.conv2.weight": (32, 128, 3, 3)}
            width += 32
        if block < 4:
            name = f"features.transition{block}"
            shapes |= norm_shapes(f"{name}.norm", width) | {f"{name}.conv.weight": (width // 2, width, 1, 1)}
            width //= 2
    return shapes | norm_shapes("features.norm5", width) | {"classifier.weight": (18, width), "classifier.bias": (18,)}


def xrv_features(state, x):
    """``features2`` of torchxrayvision's DenseNet."""

    def norm(name, x):
        parts = (state[f"features.{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts).relu()

    def convolution(name, x, *how):
        return F.conv2d(x, state[f"features.{name}.weight"], None, *how)

    x = F.max_pool2d(norm("norm0", convolution("conv0", x, 2, 3)), 3, 2, 1)
    for block, layers in enumerate((6, 12, 24, 16), 1):
        for layer in range(1, layers + 1):
            name = f"denseblock{block}.denselayer{layer}"
            y = convolution(f"{name}.conv1", norm(f"{name}.norm1", x))
            x = torch.cat([x, convolution(f"{name}.conv2", norm(f"{name}.norm2", y), 1, 1)], 1)
        if block < 4:
            x = F.avg_pool2d(convolution(f"transition{block}.conv", norm(f"transition{block}.norm", x)), 2)
    return norm("norm5", x).mean(dim=(2, 3))


def test_torchxrayvision(tmp_path):
    state = random_weights(xrv_shapes())
    assert sum(value.numel() for name, value in state.items() if "running" not in name) == 6_966_034  # as published
    extractor = loaded(TorchXRayVisionDenseNet121, state | {"op_threshs": torch.ones(18)}, tmp_path / "all.pt")
    square = (IMAGES.mean(dim=1, keepdim=True) * 1024)[:, :, 10:240]
    expected = xrv_features(state, F.interpolate(square, (224, 224), mode="bilinear", antialias=True))
    torch.testing.assert_close(extractor(IMAGES), expected, rtol=1e-4, atol=1e-5)
    of_three_channels = state | {"features.conv0.weight": torch.zeros(64, 3, 7, 7)}
    with pytest.raises(ExtractorError, match=r"has other shapes of features\.conv0\.weight"):
        loaded(TorchXRayVisionDenseNet121, of_three_channels, tmp_path / "three.pt")
