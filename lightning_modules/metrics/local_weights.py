"""Networks with weights of a local file: read without running code, loaded entirely, named by their hash."""

import hashlib
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.metrics.features import ExtractorError, FeatureExtractor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WHERE = "experiments/docs/extractors.md says where to get it"
_TOGETHER = 8 * 224**2  # pixels of a pass on a processor: 50 images of 518x518 would take gigabytes


@dataclass(frozen=True)
class Preprocessing:
    """What is done to images before a network sees them.

    Args:
        size: Pixels a side that the network gets; resizing is antialiased.
        channels: What it takes, 1 or 3: grey images are repeated for three, colour images averaged for one.
        scale: Values that black (-1) and white (1) are mapped to, before mean and standard deviation.
        mean: Of the training images, per channel or one for all.
        std: As for mean.
        crop: Take the largest square in the middle; else the whole image is squeezed into a square.
        resize: How. Bicubic values are held within the images' range, as files of 8 bits hold them.
        bgr: Colour images in the order blue, green, red, as OpenCV reads them.
    """

    size: int
    channels: Literal[1, 3] = 3
    scale: tuple[float, float] = (0.0, 1.0)
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    crop: bool = False
    resize: Literal["bilinear", "bicubic"] = "bilinear"
    bgr: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """Turn images (N, 1 or 3, H, W) in [-1, 1] into what the network gets (N, channels, size, size)."""
        images = _middle(images) if self.crop else images
        images = images.mean(dim=1, keepdim=True) if self.channels == 1 else images
        images = images.flip(1) if self.bgr else images
        if images.shape[2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode=self.resize, antialias=True).clamp(-1, 1)
        low, high = self.scale
        x = (low + (high - low) * (images + 1.0) / 2.0).expand(-1, self.channels, -1, -1)
        mean, std = (torch.tensor(values, device=x.device).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (x - mean) / std

    def __str__(self) -> str:
        """Say it, for a fingerprint."""
        channels = "grey repeated" if self.channels == 3 else "colour averaged"
        steps = (
            "square in the middle, " if self.crop else "",
            f"antialiased {self.resize} to {self.size}x{self.size}, {channels}, ",
            "colour as blue, green, red, " if self.bgr else "",
            f"scale {self.scale}, mean {tuple(self.mean)}, standard deviation {tuple(self.std)}",
        )
        return "".join(steps)


class LocalNetwork(FeatureExtractor):
    """What extractors share whose weights lie in a local file.

    Attributes:
        title: Whose network it is, as published.
        preprocessing: What it was published with; known before ``load``, except where the weights tell.

    Args:
        weights: The file, .safetensors or written by ``torch.save``; a checkpoint that holds a state dict under
            "state_dict" will do.

    Raises:
        ValueError: If there is no such file.
    """

    title: str
    preprocessing: Preprocessing

    def __init__(self, weights: str) -> None:
        super().__init__()
        if not Path(weights).is_file():
            raise ValueError(f"weights={weights!r}: no such file; it should be a state dict of {self.title} ({WHERE})")
        self.weights = Path(weights)
        self.network: nn.Module | None = None
        self._digest: str | None = None

    @abstractmethod
    def build(self, state: dict[str, Tensor]) -> nn.Module:
        """Return the network, images (N, C, size, size) -> features (N, D), with the weights of a state dict.

        Raises:
            ExtractorError: If they are another network's.
        """

    def load(self) -> None:
        """Build the network on this process.

        Raises:
            ExtractorError: If the file holds something else.
        """
        self.network = self.build(read_state(self.weights)).eval().requires_grad_(False)

    def identity(self) -> dict[str, str]:
        """Return name, weights' hash and preprocessing."""
        return {
            "extractor": self.title,
            "weights_sha256": self.sha256(),
            "preprocessing": str(self.preprocessing),
        }

    def sha256(self) -> str:
        """Return the hash of the weights' file, read once."""
        if self._digest is None:
            with self.weights.open("rb") as file:
                self._digest = hashlib.file_digest(file, "sha256").hexdigest()
        return self._digest

    def features(self, images: Tensor) -> Tensor:
        """Map images (N, 1 or 3, H, W) to features (N, D)."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"{self.title} takes 1 or 3 channels, got {images.shape[1]}")
        if self.network is None:
            raise RuntimeError("call prepare() and load() before the first image")
        network, size = self.network, self.preprocessing.size
        together = max(1, _TOGETHER // size**2) if images.device.type == "cpu" else len(images)
        return torch.cat([network(self.preprocessing(part)) for part in images.split(together)])

    def fill(self, network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
        """Load a state dict into a network, all of it and nothing else.

        Raises:
            ExtractorError: If names or shapes differ, or numbers are not real and finite.
        """
        expected = network.state_dict()
        both = expected.keys() & state
        missing = [name for name in expected.keys() - state if not name.endswith("num_batches_tracked")]
        real = [name for name in both if expected[name].is_floating_point()]
        differences = (
            ("misses", missing),
            ("has too many", state.keys() - expected),
            ("has other shapes of", [name for name in both if expected[name].shape != state[name].shape]),
            ("has integers or complex numbers in", [name for name in real if not state[name].is_floating_point()]),
            ("has numbers that are not finite in", [name for name in real if not state[name].isfinite().all()]),
        )
        if found := [f"{what} {_listed(names)}" for what, names in differences if names]:
            raise ExtractorError(f"{self.weights} is no state dict of {self.title}: it {'; it '.join(found)}")
        network.load_state_dict(state, strict=False)  # old checkpoints do not count batches
        return network


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict; nothing in the file is executed.

    Raises:
        ExtractorError: If the file holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise nearly anything
        why = f"{type(error).__name__}: {str(error)[:200]}); write it with torch.save(network.state_dict(), file)"
        if type(error).__name__ == "UnpicklingError":
            why = (
                "it is no file of torch, or a whole network was pickled into it, which would run code to be read); "
                "where you trust it, and the package that wrote it is installed, write its weights alone: "
                f'python -c "import torch; torch.save(torch.load({str(path)!r}, map_location='
                "'cpu', weights_only=False).state_dict(), 'weights.pt')\""
            )
        raise ExtractorError(f"{path} cannot be read as a state dict ({why}") from error
    state = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(state, dict) or not all(isinstance(key, str) and isinstance(state[key], Tensor) for key in state):
        raise ExtractorError(f"{path} holds no state dict; write it with torch.save(network.state_dict(), file)")
    # What torch.nn.DataParallel and DistributedDataParallel put before every name.
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _middle(images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, :, top : top + side, left : left + side]
