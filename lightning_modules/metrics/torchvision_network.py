"""Features of a classifier that the user brings: any of torchvision's architectures with a local state dict."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.metrics.features import ExtractorError, FeatureExtractor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TorchvisionNetwork(FeatureExtractor):
    """A classifier of torchvision without its head.

    Images are resized to a square (bilinear, antialiased), mapped to the values that the network was trained on and
    normalised. A network takes one or three channels, which its weights tell: grey images are repeated for three,
    colour images averaged for one. ``dimensions`` is known once the network is loaded.

    Args:
        architecture: Name of a classifier of torchvision, such as "densenet121" or "resnet50".
        weights: Local file with its state dict, .safetensors or written by ``torch.save``; a checkpoint that holds it
            under "state_dict" will do. Prefixes such as "module." are removed; the head, the last linear layer, is
            neither needed nor used, so that it may have any number of classes.
        layer: Name of the layer whose output is taken, averaged over its positions; None = what goes into the head.
        size: Pixels a side that the network gets.
        scale: Values that black (-1) and white (1) are mapped to, before mean and standard deviation.
        mean: Of the training images, per channel or one for all; None = ImageNet's (of grey: the channels' mean).
        std: As for mean.

    Raises:
        ValueError: If there is no such architecture or file, or a number makes no sense.
    """

    _mean: Tensor
    _std: Tensor
    score_name = "frechet_torchvision"

    def __init__(
        self,
        architecture: str,
        weights: str,
        layer: str | None = None,
        size: int = 224,
        scale: tuple[float, float] = (0.0, 1.0),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        from torchvision import models

        super().__init__()
        names = models.list_models(module=models)
        if architecture not in names:
            raise ValueError(f"architecture={architecture!r}: torchvision has no such classifier; it has {names}")
        if not Path(weights).is_file():
            raise ValueError(f"weights={weights!r}: no such file; name a local state dict of {architecture}")
        if size < 32:
            raise ValueError(f"size={size}: must be at least 32")
        if scale[0] >= scale[1]:
            raise ValueError(f"scale={scale}: the value of black must be below that of white")
        if std is not None and min(std) <= 0:
            raise ValueError(f"std={std}: must be above 0")
        self.architecture, self.weights, self.layer, self.size = architecture, Path(weights), layer, size
        self.scale, self.mean, self.std = tuple(scale), mean, std
        self.network: nn.Module | None = None
        self._digest: str | None = None

    def load(self) -> None:
        """Build the network on this process.

        Raises:
            ExtractorError: If the file holds something else, or there is no such layer.
        """
        from torchvision import models
        from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

        # googlenet and inception_v3 warn that they draw random weights, which are overwritten here.
        options = {"init_weights": False} if self.architecture in ("googlenet", "inception_v3") else {}
        network = models.get_model(self.architecture, weights=None, **options).eval()
        state = self._state()
        self.channels = _fit_first_convolution(network, state)
        self._load(network, state)
        self.register_buffer("_mean", self._per_channel("mean", self.mean, IMAGENET_MEAN))
        self.register_buffer("_std", self._per_channel("std", self.std, IMAGENET_STD))
        if self.layer is not None:
            _, names = get_graph_node_names(network)
            if not any(name == self.layer or name.startswith(f"{self.layer}.") for name in names):
                raise ExtractorError(f"layer={self.layer!r}: {self.architecture} has the layers {', '.join(names)}")
            network = create_feature_extractor(network, {self.layer: "features"})
        self.network = network.eval().requires_grad_(False)
        self.dimensions = self(torch.zeros(1, self.channels, self.size, self.size)).shape[1]

    def identity(self) -> dict[str, str]:
        """Return name, weights' hash and preprocessing."""
        if self._digest is None:
            with self.weights.open("rb") as file:
                self._digest = hashlib.file_digest(file, "sha256").hexdigest()
        normalised = "ImageNet's" if self.mean is None and self.std is None else f"{self.mean}, {self.std}"
        return {
            "extractor": f"torchvision {self.architecture}, {self.layer or 'input of the head'}",
            "weights_sha256": self._digest,
            "preprocessing": f"antialiased bilinear to {self.size}x{self.size}, scale {self.scale}, mean and standard "
            f"deviation {normalised}, grey repeated for networks of 3 channels, colour averaged for those of 1",
        }

    def features(self, images: Tensor) -> Tensor:
        """Map images (N, 1 or 3, H, W) to features (N, D)."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"{self.architecture} takes 1 or 3 channels, got {images.shape[1]}")
        if self.network is None:
            raise RuntimeError("call prepare() and load() before the first image")
        if self.channels == 1:
            images = images.mean(dim=1, keepdim=True)
        low, high = self.scale
        x = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        x = (low + (high - low) * (x + 1.0) / 2.0).expand(-1, self.channels, -1, -1)
        found = self.network((x - self._mean) / self._std)
        found = found["features"] if self.layer is not None else found
        if found.ndim == 4:
            return found.mean(dim=(2, 3))
        if found.ndim != 2:
            raise ExtractorError(
                f"layer={self.layer!r} gives {tuple(found.shape)}; name one with (N, D) or (N, D, H, W)"
            )
        return found

    def _state(self) -> dict[str, Tensor]:
        """Read the state dict, with names as torchvision has them."""
        try:
            if self.weights.suffix == ".safetensors":
                from safetensors.torch import load_file

                found = load_file(self.weights)
            else:
                found = torch.load(self.weights, map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling raises nearly anything on other files
            raise ExtractorError(
                f"{self.weights} cannot be read as a state dict ({type(error).__name__}: {str(error)[:200]}); write it "
                "with torch.save(network.state_dict(), file)"
            ) from error
        state = found.get("state_dict", found) if isinstance(found, dict) else None
        if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise ExtractorError(
                f"{self.weights} holds no state dict; write it with torch.save(network.state_dict(), file)"
            )
        prefixes = re.compile(rf"^((module|model|backbone|{self.architecture})\.)+")
        # Checkpoints of the time of CheXNet call a dense layer's first norm "norm.1".
        old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
        return {old.sub(r"\1\2", prefixes.sub("", name)): tensor for name, tensor in state.items()}

    def _load(self, network: nn.Module, state: dict[str, Tensor]) -> None:
        """Take the head off and load the rest, all of it."""
        linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
        head = linear[-1] if linear else None
        if head is not None:
            network.set_submodule(head, nn.Identity())
            state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{head}.")}
        elif self.layer is None:
            raise ExtractorError(f"{self.architecture} has no linear head to take features from; name a layer")
        expected = network.state_dict()
        missing = [name for name in expected.keys() - state if not name.endswith("num_batches_tracked")]
        other = [name for name in expected.keys() & state if expected[name].shape != state[name].shape]
        for what, names in (
            ("misses", missing),
            ("has too many", state.keys() - expected),
            ("has other shapes of", other),
        ):
            if names:
                listed = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
                raise ExtractorError(f"{self.weights} is no state dict of {self.architecture}: it {what} {listed}")
        network.load_state_dict(state, strict=False)  # old checkpoints do not count batches

    def _per_channel(self, name: str, values: Sequence[float] | None, usual: tuple[float, ...]) -> Tensor:
        values = values or (usual if self.channels == len(usual) else (sum(usual) / len(usual),))
        if len(values) not in (1, self.channels):
            raise ExtractorError(f"{name}={list(values)}: the network takes {self.channels} channels")
        return torch.tensor(values).float().view(1, -1, 1, 1)


class DenseNet121(TorchvisionNetwork):
    """DenseNet-121 of 224x224 pixels, as CheXNet (Rajpurkar 2017, arXiv:1711.05225), 1024 features.

    Args:
        weights: Local file with its state dict; see ``TorchvisionNetwork``.
    """

    score_name = "frechet_densenet121"
    dimensions = 1024

    def __init__(self, weights: str) -> None:
        super().__init__("densenet121", weights)


def _fit_first_convolution(network: nn.Module, state: dict[str, Tensor]) -> int:
    """Give the first convolution one channel where the weights have one; return the number of channels."""
    name, first = next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    kernel = state.get(f"{name}.weight")
    if kernel is None or kernel.ndim != 4 or kernel.shape[1] != 1:
        return 3
    first.weight = nn.Parameter(torch.empty_like(first.weight[:, :1]))
    first.in_channels = 1
    return 1
