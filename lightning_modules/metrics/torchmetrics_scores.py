"""Mirage's scores as metrics of torchmetrics, for the validation loop of any LightningModule.

Thin wrappers: each collects over batches and processes what the plain functions of its neighbours take. All take images
(N, C, H, W) in [-1, 1]. No weight of an extractor is a part of the module: none gets into its ``state_dict``, its
optimizers or its data-parallel training.
"""

from abc import ABC
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, rank_zero_warn

from lightning_modules.metrics import kernel, precision_recall, sliced_wasserstein
from lightning_modules.metrics.efficientnet import EfficientNetLite0
from lightning_modules.metrics.features import FeatureExtractor
from lightning_modules.metrics.frechet import FeatureSums, GaussianStatistics, frechet_distance
from lightning_modules.metrics.ms_ssim import ms_ssim
from lightning_modules.metrics.score import DistributionScore

SIDES = {True: "real", False: "generated"}


class _TwoSets(Metric, ABC):
    """What scores of real against generated images share.

    Args:
        extractor: Where vectors come from, ready for its first image; None = ``EfficientNetLite0()``, made ready here.
        reset_real_features: False = ``reset`` keeps the real images, which are then given once and not in every epoch.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ExtractorError: If the weights of the default extractor are not there.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, extractor: FeatureExtractor | None, reset_real_features: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if extractor is None:
            extractor = EfficientNetLite0()
            extractor.prepare()
            extractor.load()
        # In a tuple torch does not see it: its weights do not belong into checkpoints.
        self._extractor = (extractor.eval().requires_grad_(False),)
        self.reset_real_features = reset_real_features

    @property
    def extractor(self) -> FeatureExtractor:
        """Where vectors come from."""
        return self._extractor[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: one batch of one set has no value.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            f"{type(self).__name__}: a batch of one set has no value; call update(images, real=...), then compute()"
        )

    def reset(self) -> None:
        """Forget all images, or the generated ones only (``reset_real_features=False``)."""
        real = {name: value for name, value in self.metric_state.items() if name.startswith("real_")}
        kept = {} if self.reset_real_features else {k: list(v) if isinstance(v, list) else v for k, v in real.items()}
        super().reset()
        for name, value in kept.items():
            setattr(self, name, value)

    def _vectors_of(self, images: Tensor) -> Tensor:
        return self.extractor.to(self.device)(images.to(self.device))


class FrechetDistance(_TwoSets):
    """Frechet distance between real and generated images (Heusel 2017, arXiv:1706.08500); see ``frechet.py``.

    It is the FID only with ``InceptionV3`` as its extractor. Sums in float64 are kept, no features: 8 D^2 bytes for
    each set (13 MB with the default), whatever the number of images. Processes add their sums, so that their number and
    the share of each do not matter.

    Args:
        extractor: Where features come from, ready for its first image (``prepare()`` and ``load()`` were called); None
            = ``EfficientNetLite0()``.
        reset_real_features: False = ``reset`` keeps the real images; give them once then, not in every epoch.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ExtractorError: If the weights of the default extractor are not there.
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def __init__(
        self, extractor: FeatureExtractor | None = None, reset_real_features: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(extractor, reset_real_features, **{"dist_sync_fn": _sum_of_processes, **kwargs})
        # Sums grow to their shapes with the first images: a set that is not used takes no memory, nor do defaults.
        for side in SIDES.values():
            for name in ("count", "total", "outer"):
                self.add_state(f"{side}_{name}", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, images: Tensor, real: bool) -> None:
        """Add images to one set.

        Args:
            images: (N, C, H, W) in [-1, 1], of a size and channels that the extractor takes; N may be 0.
            real: To which set.

        Raises:
            ValueError: If images are of another shape or range.
        """
        if len(images):
            self._sums(real).add(self._vectors_of(images))

    def compute(self) -> Tensor:
        """Return the distance of all processes' images, a scalar on the metric's device.

        Raises:
            ValueError: If a set has fewer than two images.
        """
        return torch.tensor(frechet_distance(self.statistics(True), self.statistics(False)), device=self.device)

    def statistics(self, real: bool) -> GaussianStatistics:
        """Return mean and covariance of all processes' images of one set. All processes call it together.

        Args:
            real: Of which set.

        Raises:
            ValueError: If it has fewer than two images.
        """
        sums = self._sums(real)
        if not self._is_synced and self._to_sync and self.distributed_available_fn():
            for name in ("count", "total", "outer"):
                (total,) = _sum_of_processes(getattr(sums, name), self.process_group)
                setattr(sums, name, total)
        try:
            return sums.statistics()
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}, {SIDES[bool(real)]} images: {error}") from error

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Add up the processes' sums; also one without images takes part, with zeros."""
        for real in SIDES:
            self._sums(real)
        super().sync(*args, **kwargs)

    def _sums(self, real: bool) -> FeatureSums:
        """Return the sums that are kept in the states of a set."""
        side, dimensions = SIDES[bool(real)], self.extractor.dimensions
        if getattr(self, f"{side}_outer").ndim == 0:
            for name, shape in (("total", (dimensions,)), ("outer", (dimensions, dimensions))):
                setattr(self, f"{side}_{name}", getattr(self, f"{side}_{name}").new_zeros(shape))
        sums = FeatureSums(0)
        for name in ("count", "total", "outer"):
            setattr(sums, name, getattr(self, f"{side}_{name}"))
        return sums


class _OfVectors(_TwoSets):
    """A score of a suite that takes the vectors themselves: they are kept, and gathered from all processes.

    Args:
        score: Measures two sets of vectors.
        extractor: See ``_TwoSets``.
        at_most: Images of each set that are used, over all processes: the first ones; None = all.
        reset_real_features: See ``_TwoSets``.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``at_most`` is below what the score needs.
    """

    real_vectors: list[Tensor]
    generated_vectors: list[Tensor]

    def __init__(
        self,
        score: DistributionScore,
        extractor: FeatureExtractor | None,
        at_most: int | None,
        reset_real_features: bool,
        **kwargs: Any,
    ) -> None:
        if at_most is not None and at_most < score.at_least:
            raise ValueError(f"at_most={at_most}: {type(self).__name__} needs at least {score.at_least} images")
        super().__init__(extractor, reset_real_features, **kwargs)
        self.score, self.at_most = score, at_most
        for side in SIDES.values():
            # One long row of all: a row is what torchmetrics 1.9 sends for a process without images.
            self.add_state(f"{side}_vectors", [], dist_reduce_fx="cat")
            self.add_state(f"{side}_count", torch.tensor(0), dist_reduce_fx="sum")
        # In a MetricCollection those whose states are equal after one batch share them from then on. With equal
        # settings they would stay equal.
        settings = torch.tensor([-1 if at_most is None else at_most, int(reset_real_features)])
        self.add_state("settings", settings, dist_reduce_fx="max")

    def update(self, images: Tensor, real: bool) -> None:
        """Add images to one set, up to ``at_most``.

        Args:
            images: (N, C, H, W) in [-1, 1], of a size and channels that the extractor takes; N may be 0.
            real: To which set.

        Raises:
            ValueError: If images are of another shape or range.
        """
        side = SIDES[bool(real)]
        kept = images if self.at_most is None else images[: max(0, self._share() - int(getattr(self, f"{side}_count")))]
        if len(kept) < len(images):
            rank_zero_warn(
                f"{type(self).__name__}: of the {side} images the first {self.at_most} are used: give them in a random "
                "order, or raise at_most"
            )
        if len(kept):
            getattr(self, f"{side}_vectors").append(self._vectors_of(kept).flatten())
            getattr(self, f"{side}_count").add_(len(kept))

    def compute(self) -> Tensor | dict[str, Tensor]:
        """Return the score of all processes' images, a scalar on the metric's device; several numbers by their names.

        Raises:
            ValueError: If a set has too few images.
        """
        numbers = self.score.measure(self._vectors(True), self._vectors(False))
        values = {name: torch.tensor(value, device=self.device) for name, value in numbers.items()}
        return values if len(values) > 1 else next(iter(values.values()))

    def _share(self) -> int:
        """Return how many of the first ``at_most`` images are this process's, where processes take turns."""
        assert self.at_most is not None
        if not self.distributed_available_fn():
            return self.at_most
        group = self.process_group
        return len(range(torch.distributed.get_rank(group), self.at_most, torch.distributed.get_world_size(group)))

    def _vectors(self, real: bool) -> Tensor:
        side = SIDES[bool(real)]
        count = int(getattr(self, f"{side}_count"))
        if not count:
            raise ValueError(f"{type(self).__name__}: no {side} images were given")
        return dim_zero_cat(getattr(self, f"{side}_vectors")).view(count, -1)


class KernelDistance(_OfVectors):
    """Kernel distance, unbiased, on all images at once (Binkowski 2018, arXiv:1801.01401); see ``kernel.py``.

    It is the KID only with ``InceptionV3`` as its extractor. No subsets are drawn: equal images give an equal value.

    Args:
        extractor: Where features come from, ready for its first image (``prepare()`` and ``load()`` were called); None
            = ``EfficientNetLite0()``.
        at_most: Images of each set that are used, over all processes: the first ones; None = all. Their features are
            kept.
        reset_real_features: False = ``reset`` keeps the real images; give them once then, not in every epoch.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ExtractorError: If the weights of the default extractor are not there.
        ValueError: If ``at_most`` is below 2.
    """

    higher_is_better = False

    def __init__(
        self,
        extractor: FeatureExtractor | None = None,
        at_most: int | None = 5_000,
        reset_real_features: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(kernel.KernelDistance(), extractor, at_most, reset_real_features, **kwargs)


class PrecisionRecall(_OfVectors):
    """Improved ``precision`` and ``recall`` (Kynkaanniemi 2019, arXiv:1904.06991); see ``precision_recall.py``.

    Both rise with fewer images: compare equal counts only.

    Args:
        extractor: As for ``KernelDistance``.
        k: Neighbour that gives the radius of a ball.
        at_most: As for ``KernelDistance``.
        reset_real_features: As for ``KernelDistance``.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ExtractorError: If the weights of the default extractor are not there.
        ValueError: If ``k`` is below 1, or ``at_most`` not above it.
    """

    higher_is_better = True
    plot_lower_bound, plot_upper_bound = 0.0, 1.0

    def __init__(
        self,
        extractor: FeatureExtractor | None = None,
        k: int = 3,
        at_most: int | None = 5_000,
        reset_real_features: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(precision_recall.PrecisionRecall(k), extractor, at_most, reset_real_features, **kwargs)


class DensityCoverage(_OfVectors):
    """``density`` and ``coverage`` (Naeem 2020, arXiv:2002.09797); see ``precision_recall.py``.

    Args:
        extractor: As for ``KernelDistance``.
        k: Neighbour that gives the radius of a ball.
        at_most: As for ``KernelDistance``.
        reset_real_features: As for ``KernelDistance``.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ExtractorError: If the weights of the default extractor are not there.
        ValueError: If ``k`` is below 1, or ``at_most`` not above it.
    """

    higher_is_better = True
    plot_lower_bound = 0.0

    def __init__(
        self,
        extractor: FeatureExtractor | None = None,
        k: int = 5,
        at_most: int | None = 5_000,
        reset_real_features: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(precision_recall.DensityCoverage(k), extractor, at_most, reset_real_features, **kwargs)


class SlicedWasserstein(_OfVectors):
    """Sliced Wasserstein distance of patches, times 1,000 (Karras 2018, arXiv:1710.10196).

    See ``sliced_wasserstein.py``. It needs no network. All images are of one size, at least 16 pixels a side; of each
    6 kB of patches are kept per level of its pyramid.

    Args:
        at_most: As for ``KernelDistance``.
        reset_real_features: As for ``KernelDistance``.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``at_most`` is below 2.
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def __init__(self, at_most: int | None = 2_000, reset_real_features: bool = True, **kwargs: Any) -> None:
        score = sliced_wasserstein.SlicedWasserstein()
        super().__init__(score, score.reads, at_most, reset_real_features, **kwargs)


class MultiScaleStructuralSimilarity(Metric):
    """Mean multi-scale structural similarity of pairs of images of any size from 11 pixels a side; see ``ms_ssim.py``.

    Of images below 176 pixels the first scales are taken, as many as hold the window (torchmetrics' own metric refuses
    images of up to 160). Of a generator without a reference give pairs of its own images, ``update(images[:-1:2],
    images[1::2])``: above the value of real images it repeats itself.

    Args:
        kwargs: Those of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_upper_bound = 1.0

    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add pairs.

        Args:
            preds: (N, C, H, W) in [-1, 1]; N may be 0.
            target: Of the same shape.

        Raises:
            ValueError: If images are of different shapes, too small, or of another range.
        """
        for images in (preds, target):
            if images.ndim != 4:
                raise ValueError(f"expected images (N, C, H, W), got shape {tuple(images.shape)}")
            if len(images) and not -1.001 <= float(images.min()) <= float(images.max()) <= 1.001:
                low, high = float(images.min()), float(images.max())
                raise ValueError(f"expected images in [-1, 1], got {low:.3g} .. {high:.3g}")
        if len(preds) or len(target):
            self.total += ms_ssim(preds.float(), target.float()).sum()
            self.count += len(preds)

    def compute(self) -> Tensor:
        """Return the mean of all processes' pairs, a scalar.

        Raises:
            ValueError: If there are none.
        """
        if not self.count:
            raise ValueError(f"{type(self).__name__}: no images were given")
        return (self.total / self.count).float()


def _sum_of_processes(tensor: Tensor, group: Any = None) -> list[Tensor]:
    """Return the sum over processes, as the one entry of a list: torchmetrics sums over entries.

    Its own way gathers all processes' matrices on each of them first.
    """
    total = tensor.clone()
    torch.distributed.all_reduce(total, group=group)
    return [total]
