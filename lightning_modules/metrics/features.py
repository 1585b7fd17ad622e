"""Feature extractors: images (N, C, H, W) in [-1, 1] -> features (N, D) float32, under one interface.

A score says which extractor it used: ``score_name`` names the metric, ``identity`` goes into its fingerprint.
"""

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Precision = Literal["float32", "bfloat16"]


_CACHED_PIXELS = 2**17


class ExtractorError(RuntimeError):
    """A score cannot be taken with this extractor or these images; the message says why and what to do."""


class FeatureExtractor(nn.Module, ABC):
    """Interface of an extractor: frozen, in evaluation mode, features in float32.

    Attributes:
        score_name: Name under which a Frechet distance with these features is logged. Only ``InceptionV3`` is "fid".
        dimensions: Length D of a feature vector.
    """

    score_name: str
    dimensions: int

    def prepare(self) -> None:
        """Fetch what the extractor needs. Runs on one process per machine, before ``load``."""

    def load(self) -> None:
        """Build the network on this process."""

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """Return name, SHA-256 of the weights, and what is done to an image, for the fingerprint of a score."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [-1, 1] to features (N, D) float32."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Check the range, then extract."""
        if images.ndim != 4:
            raise ValueError(f"expected images (N, C, H, W), got shape {tuple(images.shape)}")
        low, high = float(images.min()), float(images.max())
        if not (-1.001 <= low and high <= 1.001):
            raise ValueError(f"expected images in [-1, 1], got {low:.3g} .. {high:.3g}")
        with torch.autocast(images.device.type, enabled=False):
            return self.features(images.float())


class RandomConvNet(FeatureExtractor):
    """A convolutional network with fixed random weights, which needs no download and hardly any time at 32 pixels.

    Random features see texture and layout, not anatomy: the score compares checkpoints and runs on one data set and
    says nothing in absolute terms. Each of four stages (3x3 convolution, leaky ReLU, average pool) yields the mean and
    the standard deviation of its channels, so that fine and coarse structure both count.
    """

    score_name = "frechet_random_conv"
    _channels = (16, 24, 32, 48)
    dimensions = 2 * sum(_channels)

    def __init__(self) -> None:
        super().__init__()
        # RandomState's stream is frozen by numpy's compatibility policy; torch's may change between versions.
        random = np.random.RandomState(20260101)
        digest = hashlib.sha256()
        self.kernels = nn.ParameterList()
        for before, after in zip((1, *self._channels), self._channels, strict=False):
            he_std = np.sqrt(2.0 / (9 * before))
            kernel = (he_std * random.standard_normal((after, before, 3, 3))).astype(np.float32)
            digest.update(kernel.tobytes())
            self.kernels.append(nn.Parameter(torch.from_numpy(kernel), requires_grad=False))
        self._digest = digest.hexdigest()
        self.eval()

    def identity(self) -> dict[str, str]:
        """Return name, weights' hash and preprocessing."""
        return {
            "extractor": "random_conv",
            "weights_sha256": self._digest,
            "preprocessing": "mean over channels, own resolution",
        }

    def features(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W), at least 16 pixels a side, to features (N, 240)."""
        if min(images.shape[2:]) < 16:
            raise ValueError(f"needs at least 16 pixels a side, got {tuple(images.shape[2:])}")
        # A few images at a time stay in a processor's cache: 2 times as fast as 50 of 256x256 at once.
        together = max(1, _CACHED_PIXELS // images[0, 0].numel()) if images.device.type == "cpu" else len(images)
        return torch.cat([self._statistics(part.mean(dim=1, keepdim=True)) for part in images.split(together)])

    def _statistics(self, x: Tensor) -> Tensor:
        statistics = []
        for kernel in self.kernels:
            x = F.leaky_relu(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel), 0.2, inplace=True)
            mean = x.mean(dim=(2, 3), keepdim=True)
            # torch's own std takes three times as long.
            statistics += [mean.flatten(1), (x - mean).square_().mean(dim=(2, 3)).sqrt()]
            x = F.avg_pool2d(x, 2)
        return torch.cat(statistics, dim=1)


class InceptionV3(FeatureExtractor):
    """Inception-v3 with the reference FID weights of 2015-12-05 (Heusel 2017), 2048 pool features.

    Network and TensorFlow-like resizing to 299x299 are torch-fidelity's; its batch normalisations are folded into the
    convolutions, which run channels-last. Grey images are repeated to three channels and quantised to 8 bits, since the
    reference is defined on 8-bit RGB.

    Args:
        weights: Local path of ``weights-inception-2015-12-05-6726825d.pth`` (pytorch-fid's ``pt_inception-...`` is the
            same file); None = torch's hub cache, downloaded on first use.
        precision: Of the convolutions. bfloat16 is faster where the machine has instructions for it, slower elsewhere,
            and its scores are not those of float32: the fingerprint tells them apart.
    """

    score_name = "fid"
    dimensions = 2048
    SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
    FILE = "weights-inception-2015-12-05-6726825d.pth"
    URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"

    def __init__(self, weights: str | None = None, precision: Precision = "float32") -> None:
        super().__init__()
        if weights is not None and not Path(weights).is_file():
            raise ValueError(f"weights={weights!r}: no such file; it should be {self.FILE}, from {self.URL}")
        if precision not in get_args(Precision):
            raise ValueError(f"precision={precision!r}: must be one of {', '.join(get_args(Precision))}")
        self.weights = Path(weights) if weights else Path(torch.hub.get_dir()) / "checkpoints" / self.FILE
        self.precision = precision
        self.network: nn.Module | None = None

    def prepare(self) -> None:
        """Download the weights unless they are there, and check their SHA-256.

        Raises:
            ExtractorError: If they cannot be had or are not the reference's.
        """
        if not self.weights.is_file():
            self.weights.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(self.URL, str(self.weights), hash_prefix=self.SHA256, progress=False)
            except (OSError, RuntimeError) as error:
                raise ExtractorError(
                    f"the Inception weights could not be downloaded ({error}); fetch {self.URL} on a machine with "
                    "network and name the file as the extractor's weights (callbacks.score.extractor.weights in a run, "
                    "extractors.inception.weights in an evaluation), or use an extractor that needs no download, "
                    "lightning_modules.metrics.efficientnet.EfficientNetLite0"
                ) from error
        with self.weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.SHA256:
            raise ExtractorError(f"{self.weights} has SHA-256 {found}, the reference FID weights have {self.SHA256}")

    def load(self) -> None:
        """Build the network on this process."""
        from torch.nn.utils.fusion import fuse_conv_bn_eval
        from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3

        reference = FeatureExtractorInceptionV3("inception-v3", ["2048"], str(self.weights))
        for block in reference.modules():
            if isinstance(block, BasicConv2d):
                block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), nn.Identity()
        *layers, _, classes = reference.children()  # in the order of the forward pass; the pool is taken in float32
        network = nn.Sequential(*layers).to(getattr(torch, self.precision)).to(memory_format=torch.channels_last)
        self.network = network.eval().requires_grad_(False)
        self.register_buffer("classes", classes.weight.detach())

    def identity(self) -> dict[str, str]:
        """Return name, weights' hash, preprocessing and precision."""
        return {
            "extractor": "inception_v3_2015-12-05",
            "weights_sha256": self.SHA256,
            "preprocessing": "grey repeated to RGB, 8 bits, TensorFlow-1 bilinear to 299x299",
            "precision": self.precision,
        }

    def features(self, images: Tensor) -> Tensor:
        """Map images (N, 1 or 3, H, W) to features (N, 2048)."""
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as resize

        if images.shape[1] not in (1, 3):
            raise ValueError(f"Inception-v3 takes 1 or 3 channels, got {images.shape[1]}")
        if self.network is None:
            raise RuntimeError("call prepare() and load() before the first image")
        levels = ((images + 1.0) * 127.5).round().clamp(0, 255)
        x = (resize(levels, size=(299, 299), align_corners=False) - 128.0) / 128.0
        x = x.expand(-1, 3, -1, -1).to(getattr(torch, self.precision), memory_format=torch.channels_last)
        return self.network(x).float().mean(dim=(2, 3))


class InceptionProbabilities(InceptionV3):
    """What the reference Inception-v3 takes images for: probabilities of its 1008 classes.

    The classes are those of photographs, 1000 of ImageNet and 8 that were never trained. As in the reference
    implementation the logits have no bias.

    Args:
        weights: As for ``InceptionV3``.
        precision: As for ``InceptionV3``.
    """

    classes: Tensor
    score_name = "inception_probabilities"
    dimensions = 1008

    def identity(self) -> dict[str, str]:
        """Return name, weights' hash, preprocessing and precision."""
        return {**super().identity(), "extractor": "inception_v3_2015-12-05, probabilities without bias"}

    def features(self, images: Tensor) -> Tensor:
        """Map images (N, 1 or 3, H, W) to probabilities (N, 1008)."""
        return (super().features(images) @ self.classes.T).softmax(dim=1)
