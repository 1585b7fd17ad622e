"""Image metrics of torchmetrics as instruments: a suite names one, an evaluation adds sets, intervals and floors.

Two kinds of them say something of images that belong to no reference. Those that compare two sets of features (Frechet,
kernel and memorisation-informed distance) get the vectors of the suite's extractors in place of their own network's.
Those that take one image, or a pair, measure each image, or disjoint pairs of images of one set: how alike are they?
The others are refused: they need class logits, images in several resolutions, or the generator itself.
"""

import hashlib
import importlib
import inspect
import io
import re
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, Literal

import torch
import torchmetrics
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_modules.metrics.features import FeatureExtractor
from lightning_modules.metrics.frechet import single_thread
from lightning_modules.metrics.score import DistributionScore

PACKAGE = "torchmetrics.image"
# What these arguments say follows from our images, which come to a metric in [0, 1], or from our extractors.
GIVEN = {"feature", "normalize", "data_range", "reset_real_features", "input_img_size", "antialias"}
GIVEN |= {"feature_extractor_weights_path"}
Kind = Literal["vectors", "images", "pairs"]
Plain = int | float | bool | str | None | Sequence[int] | Sequence[float]


class TorchmetricsScore(DistributionScore):
    """An image metric of torchmetrics.

    The number is called ``torchmetrics_`` and the metric's class, without "inception": the features are the suite's. Of
    several numbers that a metric returns the first is taken. A metric of single images or of pairs is the mean of its
    values for each; "as real" is then the best that it can say, for a blank image is the smoothest of all.

    Args:
        metric: Path of its class, such as "torchmetrics.image.kid.KernelInceptionDistance".
        arguments: Its arguments by name. Networks, ranges and what concerns several processes are not among them.

    Raises:
        ValueError: If there is no such metric, it is of no kind that is known here, it refuses an argument, or weights
            that it would download are not in torch's cache.
    """

    def __init__(self, metric: str, arguments: Mapping[str, Plain] | None = None) -> None:
        self.metric, self.arguments = metric, dict(arguments or {})
        self._cls = _located(metric)
        self._kind = _kind(self._cls, metric)
        _check_arguments(self._cls, self.arguments)
        built = self._built(**({"feature": _Vectors(2)} if self._kind == "vectors" else {}))
        if self._kind == "vectors":
            self.better = "higher" if self._cls.higher_is_better else "lower"
            # Sums are all that some keep; others keep every vector, and compare each with each.
            self.at_most = 5_000 if any(isinstance(state, list) for state in built.metric_state.values()) else None
        else:
            self.reads = _Values(built, metric, self.arguments, self._kind)
            self.better, self.at_most = "as real", 2_000
            self.unit = "pair" if self._kind == "pairs" else "image"
        self.steady_from = 100
        self.depends_on = {"torchmetrics": torchmetrics.__version__}

    def enough(self, dimensions: int) -> int:
        """Return twice the length of a vector for Frechet distances, whose covariances need it, else 100."""
        return 2 * dimensions if "Frechet" in self._cls.__name__ else self.steady_from

    def measure(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Return one number, in float64. What a metric draws at random is drawn from a fixed seed.

        Args:
            real: Vectors (N, D); values (N, 1) of a metric of images or pairs only say how many there are.
            generated: Vectors (M, D), or values (M, 1).

        Raises:
            TooFewImagesError: If a set has fewer than two images, or pairs.
            ValueError: If the metric refuses the sets, or is not finite.
        """
        name = "torchmetrics_" + re.sub(r"(?<!^)(?=[A-Z])", "_", self._cls.__name__).lower().replace("_inception", "")
        if self._kind != "vectors":
            for values in (real, generated):
                lost = int((~values.isfinite()).sum())
                if lost:
                    of_equal = " (PSNR is infinite for equal images)" if self._kind == "pairs" else ""
                    raise ValueError(f"{self.metric}: not finite for {lost} of {len(values)} {self.unit}s{of_equal}")
            self.check(real, generated)
            return {name: float(generated.double().mean())}
        self.check(real, generated)
        metric = self._built(feature=_Vectors(real.shape[1]))
        with _in_its_words(self.metric), single_thread(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            for vectors, of_real in ((real, True), (generated, False)):
                for part in vectors.split(1024):
                    metric.update(part.double(), real=of_real)
            return {name: float(_number(metric.compute()))}

    def _built(self, **given: Any) -> Metric:
        of_images = {"data_range": 1.0, "normalize": True}
        given |= {name: value for name, value in of_images.items() if name in _given(self._cls)}
        plain = {name: tuple(v) if isinstance(v, list) else v for name, v in self.arguments.items()}
        with _no_download(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on features that are kept: at most 5,000 here
            try:
                return self._cls(**plain, **given)
            except OSError as error:
                raise ValueError(f"metric={self.metric!r}: {error}") from error
            except (ValueError, TypeError) as error:
                raise ValueError(f"arguments={self.arguments}: {error}") from error


class _Vectors(nn.Module):
    """Stands where a metric has its network: the images are vectors already."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.num_features = dimensions

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors


class _Values(FeatureExtractor):
    """A metric's value for each image, or for images 2i and 2i + 1 of a batch in the rows of both."""

    score_name = "torchmetrics_value"
    dimensions = 1

    def __init__(self, metric: Metric, path: str, arguments: Mapping[str, Plain], kind: Kind) -> None:
        super().__init__()
        self.metric, self.path, self.arguments, self.kind = metric, path, arguments, kind
        self.has_network = any(True for _ in metric.parameters())

    def identity(self) -> dict[str, str]:
        """Return class, version and arguments, the hash of its network's weights, and what is done to an image."""
        digest = hashlib.sha256()
        for weights in self.metric.state_dict().values():
            digest.update(weights.cpu().contiguous().numpy().tobytes())
        rgb = ", grey repeated to three channels" if self.has_network else ""
        return {
            "extractor": f"{self.path} of {self.kind}, torchmetrics {torchmetrics.__version__}, {self.arguments}",
            "weights_sha256": digest.hexdigest() if self.has_network else "none",
            "preprocessing": f"own resolution, [0, 1]{rgb}",
        }

    def features(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to values (N, 1); without a partner the last one gets NaN."""
        images = ((images + 1.0) / 2.0).clamp(0.0, 1.0)
        if self.has_network and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        metric = self.metric.clone()  # an evaluation calls from several threads
        found = images.new_full((len(images), 1), torch.nan)
        step = 2 if self.kind == "pairs" else 1
        with _in_its_words(self.path):
            for i in range(0, len(images) - step + 1, step):
                metric.reset()
                metric.update(*images[i : i + step].split(1))
                found[i : i + step] = _number(metric.compute()).float()
        return found


def _located(path: str) -> type[Metric]:
    module_name, _, name = path.rpartition(".")
    is_path = all(part.isidentifier() for part in path.split("."))
    if not is_path or not f"{module_name}.".startswith(f"{PACKAGE}."):
        raise ValueError(f"metric={path!r}: name a class of {PACKAGE}, such as {PACKAGE}.kid.KernelInceptionDistance")
    try:
        cls = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise ValueError(f"metric={path!r}: {error}") from error
    if not (inspect.isclass(cls) and issubclass(cls, Metric) and cls.__module__.startswith(f"{PACKAGE}.")):
        raise ValueError(f"metric={path!r}: torchmetrics {torchmetrics.__version__} has no such metric there")
    return cls


def _kind(cls: type[Metric], path: str) -> Kind:
    """Return what a metric takes, by the signature of its ``update``."""
    if cls.__name__ == "DeepImageStructureAndTextureSimilarity":
        raise ValueError(f"metric={path!r}: reads its network, VGG16, from a file anew for every pair")
    if "feature" in inspect.signature(cls).parameters:
        if "real" in inspect.signature(cls.update).parameters:
            return "vectors"
        raise ValueError(
            f"metric={path!r}: takes class logits, which no extractor gives; name "
            "lightning_modules.metrics.inception_score.InceptionScore"
        )
    hints = {name: hint for name, hint in typing.get_type_hints(cls.update).items() if name != "return"}
    if set(hints.values()) != {Tensor} or len(hints) > 2:
        takes = ", ".join(f"{name}: {getattr(hint, '__name__', hint)}" for name, hint in hints.items())
        raise ValueError(f"metric={path!r}: its update takes {takes}, neither images, nor pairs, nor two sets of them")
    return "images" if len(hints) == 1 else "pairs"


def _given(cls: type[Metric]) -> set[str]:
    """Return the arguments of a metric that are not the suite's."""
    parameters = inspect.signature(cls).parameters
    # Multi-scale SSIM normalises something else, by a name.
    return {name for name in GIVEN & set(parameters) if name != "normalize" or parameters[name].default is False}


def _check_arguments(cls: type[Metric], arguments: Mapping[str, Plain]) -> None:
    given = _given(cls)
    known = [p.name for p in inspect.signature(cls).parameters.values() if p.kind is not p.VAR_KEYWORD]
    for name in arguments:
        if name in given:
            raise ValueError(f"arguments.{name}: follows from Mirage's images and extractors; remove it")
        if name not in known:
            others = ", ".join(sorted(set(known) - given)) or "none"
            raise ValueError(f"arguments.{name}: {cls.__name__} has no such argument; it has {others}")


def _number(value: Any) -> Tensor:
    """Return the first of a metric's numbers."""
    first = value[0] if isinstance(value, tuple) else value
    if not isinstance(first, Tensor) or first.numel() != 1:
        raise ValueError(f"gives no number but {type(first).__name__} {tuple(getattr(first, 'shape', ()))}")
    return first.reshape(())


@contextmanager
def _in_its_words(path: str) -> Iterator[None]:
    """Raise what a metric says against its images as a ValueError, which becomes the row of a score."""
    try:
        yield
    except (ValueError, RuntimeError, TypeError, IndexError, AssertionError) as error:
        said = str(error).strip() or type(error).__name__
        raise ValueError(f"{path}: {said.splitlines()[0]}") from error


@contextmanager
def _no_download() -> Iterator[None]:
    """Let a metric take weights from torch's cache, and nothing from the network."""

    def refuse(url: str, dst: str, hash_prefix: str | None = None, progress: bool = True) -> None:
        raise FileNotFoundError(
            f"its weights are not here, and an evaluation downloads nothing; fetch {url} and put it at {dst}"
        )

    download = torch.hub.download_url_to_file
    torch.hub.download_url_to_file = refuse
    try:
        with redirect_stdout(io.StringIO()):  # torch.hub says that it downloads before it does
            yield
    finally:
        torch.hub.download_url_to_file = download
