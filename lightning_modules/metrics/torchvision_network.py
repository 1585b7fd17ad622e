"""Features of a classifier that the user brings: any of torchvision's architectures with a local state dict."""

import re
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_modules.metrics.features import ExtractorError
from lightning_modules.metrics.local_weights import IMAGENET_MEAN, IMAGENET_STD, LocalNetwork, Preprocessing


class TorchvisionNetwork(LocalNetwork):
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

        names = models.list_models(module=models)
        if architecture not in names:
            raise ValueError(f"architecture={architecture!r}: torchvision has no such classifier; it has {names}")
        self.title = f"torchvision {architecture}"
        super().__init__(weights)
        if size < 32:
            raise ValueError(f"size={size}: must be at least 32")
        if scale[0] >= scale[1]:
            raise ValueError(f"scale={scale}: the value of black must be below that of white")
        if std is not None and min(std) <= 0:
            raise ValueError(f"std={std}: must be above 0")
        self.architecture, self.layer, self.size = architecture, layer, size
        self.scale, self.mean, self.std = (scale[0], scale[1]), mean, std

    def load(self) -> None:
        """Build the network on this process.

        Raises:
            ExtractorError: If the file holds something else, or there is no such layer.
        """
        super().load()
        shape = (1, self.preprocessing.channels, self.size, self.size)
        self.dimensions = self(torch.zeros(shape)).shape[1]

    def build(self, state: dict[str, Tensor]) -> nn.Module:
        """Return the classifier without its head, as far as ``layer``."""
        from torchvision import models

        # googlenet and inception_v3 warn that they draw random weights, which are overwritten here.
        options = {"init_weights": False} if self.architecture in ("googlenet", "inception_v3") else {}
        network = models.get_model(self.architecture, weights=None, **options).eval()
        state = self._named_as_in_torchvision(state)
        channels = _fit_first_convolution(network, state)
        mean = self._per_channel("mean", self.mean, IMAGENET_MEAN, channels)
        std = self._per_channel("std", self.std, IMAGENET_STD, channels)
        self.preprocessing = Preprocessing(self.size, channels, self.scale, mean, std)
        self.fill(network, self._without_head(network, state))
        return _Features(network, self.layer, self.architecture)

    def identity(self) -> dict[str, str]:
        """Return name, weights' hash and preprocessing."""
        normalised = "ImageNet's" if self.mean is None and self.std is None else f"{self.mean}, {self.std}"
        return {
            "extractor": f"torchvision {self.architecture}, {self.layer or 'input of the head'}",
            "weights_sha256": self.sha256(),
            "preprocessing": f"antialiased bilinear to {self.size}x{self.size}, scale {self.scale}, mean and standard "
            f"deviation {normalised}, grey repeated for networks of 3 channels, colour averaged for those of 1",
        }

    def _named_as_in_torchvision(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        prefixes = re.compile(rf"^((module|model|backbone|{self.architecture})\.)+")
        # Checkpoints of the time of CheXNet call a dense layer's first norm "norm.1".
        old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
        return {old.sub(r"\1\2", prefixes.sub("", name)): tensor for name, tensor in state.items()}

    def _without_head(self, network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take the head off the network, and return the rest of the weights."""
        linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
        if linear:
            network.set_submodule(linear[-1], nn.Identity())
            return {name: tensor for name, tensor in state.items() if not name.startswith(f"{linear[-1]}.")}
        if self.layer is None:
            raise ExtractorError(f"{self.architecture} has no linear head to take features from; name a layer")
        return state

    def _per_channel(
        self, name: str, values: Sequence[float] | None, usual: tuple[float, ...], channels: int
    ) -> Sequence[float]:
        values = values or (usual if channels == len(usual) else (sum(usual) / len(usual),))
        if len(values) not in (1, channels):
            raise ExtractorError(f"{name}={list(values)}: the network takes {channels} channels")
        return values


class _Features(nn.Module):
    """What a network gives, or its layer, averaged over places: images -> features (N, D)."""

    def __init__(self, network: nn.Module, layer: str | None, architecture: str) -> None:
        from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

        super().__init__()
        self.layer = layer
        if layer is not None:
            _, names = get_graph_node_names(network)
            if not any(name == layer or name.startswith(f"{layer}.") for name in names):
                raise ExtractorError(f"layer={layer!r}: {architecture} has the layers {', '.join(names)}")
            network = create_feature_extractor(network, {layer: "features"})
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        found = self.network(x) if self.layer is None else self.network(x)["features"]
        if found.ndim == 4:
            return found.mean(dim=(2, 3))
        if found.ndim != 2:
            raise ExtractorError(
                f"layer={self.layer!r} gives {tuple(found.shape)}; name one with (N, D) or (N, D, H, W)"
            )
        return found


class DenseNet121(TorchvisionNetwork):
    """DenseNet-121 of 224x224 pixels, as CheXNet (Rajpurkar 2017, arXiv:1711.05225), 1024 features.

    Args:
        weights: Local file with its state dict; see ``TorchvisionNetwork``.
    """

    score_name = "frechet_densenet121"
    dimensions = 1024

    def __init__(self, weights: str) -> None:
        super().__init__("densenet121", weights)


def _fit_first_convolution(network: nn.Module, state: dict[str, Tensor]) -> Literal[1, 3]:
    """Give the first convolution one channel where the weights have one; return the number of channels."""
    name, first = next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    kernel = state.get(f"{name}.weight")
    if kernel is None or kernel.ndim != 4 or kernel.shape[1] != 1:
        return 3
    first.weight = nn.Parameter(torch.empty_like(first.weight[:, :1]))
    first.in_channels = 1
    return 1
