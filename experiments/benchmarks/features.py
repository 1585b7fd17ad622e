"""Extractors against others' networks: ``python -m experiments.benchmarks.features``.

Inception-v3 (with random weights) against torch-fidelity's, EfficientNet-Lite0 against timm's.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from experiments.benchmarks.timing import rates, show
from lightning_modules.metrics.efficientnet import EfficientNetLite0
from lightning_modules.metrics.features import FeatureExtractor, InceptionV3, Precision

BATCH, BATCHES = 16, 2
LITE_BATCH, LITE_SIZE = 32, 64


class Undownloaded(FeatureExtractorInceptionV3):
    """torch-fidelity's network as it was initialised: speed does not depend on the weights."""

    def load_state_dict(self, *args: object, **kwargs: object) -> None:
        """Read nothing."""


def extractor(weights: Path, precision: Precision) -> FeatureExtractor:
    """Return Mirage's extractor with these weights."""
    network = InceptionV3(str(weights), precision)
    network.load()
    return network


def of(network: Callable[[torch.Tensor], object], batch: torch.Tensor) -> Callable[[], int]:
    """Return work that runs a network on a batch some times."""

    @torch.no_grad()
    def work() -> int:
        for _ in range(BATCHES):
            network(batch)
        return len(batch) * BATCHES

    return work


def main() -> None:
    """Measure and print."""
    inception()
    efficientnet()


def efficientnet() -> None:
    """Measure EfficientNet-Lite0 at its usual size, images in and features out, against timm's bare network."""
    import timm

    images = torch.rand(LITE_BATCH, 1, LITE_SIZE, LITE_SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ours = EfficientNetLite0(LITE_SIZE)
    ours.load()
    plain = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    found = rates({"timm": of(plain, images.expand(-1, 3, -1, -1).contiguous()), "Mirage": of(ours, images)})
    show(f"EfficientNet-Lite0, {LITE_SIZE}x{LITE_SIZE} grey images, batch {LITE_BATCH}", found, "images/s")


def inception() -> None:
    """Measure Inception-v3."""
    images = torch.rand(BATCH, 1, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    levels = ((images + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pth"
        torch.save({}, weights)
        reference = Undownloaded("inception-v3", ["2048"], str(weights))
        torch.save(reference.state_dict(), weights)
        variants: dict[str, nn.Module] = {"Mirage, float32": extractor(weights, "float32")}
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            variants["Mirage, bfloat16"] = extractor(weights, "bfloat16")

    with torch.no_grad():
        (expected,) = reference(levels)
        for name, network in variants.items():
            error = float((network(images) - expected).norm() / expected.norm())
            print(f"{name}: features differ from torch-fidelity's by {error:.1e} of their size")
    found = rates({"torch-fidelity": of(reference, levels)} | {k: of(v, images) for k, v in variants.items()}, rounds=3)
    show("Inception-v3 features of 256x256 grey images", found, "images/s")


if __name__ == "__main__":
    main()
