"""Moments of images after Korkinof 2021: their agreement between real and generated images, and what pruning does."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.figures.moments import COVERED, PAIRS
from lightning_modules.metrics.agreement import MomentAgreement, agreement, contour_coverage, neighbours_within
from lightning_modules.metrics.mutual_information import label_entropy
from lightning_modules.metrics.pruning import outside_support
from lightning_modules.metrics.score import TooFewImagesError

QUANTILE = 0.99  # share of real images that count as inside their own support


@dataclass(frozen=True)
class MomentStudy:
    """What two sets of moments have in common.

    Attributes:
        real: Moments (N, 5) float64.
        generated: Moments (M, 5) float64.
        seed: Chooses the images that the scatter plots show.
        agreement: ``agreement`` of each pair of moments, 5 x 5; single moments on the diagonal.
        information: Mutual information of each moment and the label, in nats.
        most_information: The largest possible value of it, ln 2 for sets of equal size.
        neighbours: ``neighbours_within`` of each moment, 6 for equal and 3 for disjoint supports.
        coverage: Share of the real 97th-percentile contour that the generated one covers, by pair of moments.
        outside: Share of generated images outside the real support (``outside_support``, 1 % of fresh real images
            are); None = too few real images to say.
    """

    real: Tensor
    generated: Tensor
    seed: int
    agreement: tuple[tuple[float, ...], ...]
    information: tuple[float, ...]
    most_information: float
    neighbours: tuple[float, ...]
    coverage: dict[tuple[int, int], float]
    outside: float | None


def analyse(real: Tensor, generated: Tensor, seed: int = 0) -> MomentStudy:
    """Compare moments.

    Args:
        real: Moments (N, 5).
        generated: Moments (M, 5).
        seed: Chooses the images that the scatter plots show; no number depends on it.

    Raises:
        TooFewImagesError: If there are fewer than 50 images of a set.
        ValueError: If a moment is not finite, or the same in all real images.
    """
    real, generated = (points.detach().to("cpu", torch.float64) for points in (real, generated))
    MomentAgreement().check(real, generated)
    found, most = agreement(real, generated), label_entropy(len(real), len(generated))
    try:
        outside = float(outside_support(real, generated, QUANTILE).double().mean())
    except TooFewImagesError:
        outside = None
    return MomentStudy(
        real,
        generated,
        seed,
        agreement=tuple(map(tuple, found.tolist())),
        information=tuple(((1.0 - found.diagonal()) * most).tolist()),
        most_information=most,
        neighbours=tuple(neighbours_within(real, generated).tolist()),
        coverage={pair: contour_coverage(real, generated, pair, COVERED).coverage for pair in PAIRS},
        outside=outside,
    )


@dataclass(frozen=True)
class PruningEffect:
    """What leaving out outliers does to scores.

    Attributes:
        images: Generated images.
        pruned: How many of them were left out.
        rows: Name of a score that could be measured each time; its value for all images, without as many images left
            out at random, and without the outliers.
    """

    images: int
    pruned: int
    rows: tuple[tuple[str, float, float, float], ...]


def pruning_effect(
    real: Tensor, generated: Tensor, scores: Callable[[Tensor], dict[str, float]], seed: int = 0
) -> PruningEffect:
    """Compute scores with all generated images, without some at random, and without those outside the real support.

    Many scores change with the number of images alone; only what differs from the random choice is due to pruning.

    Args:
        real: Moments (N, 5).
        generated: Moments (M, 5).
        scores: Called with a bool mask (M,) of the generated images that are kept; may leave out what cannot be
            measured.
        seed: Of the random choice.

    Raises:
        TooFewImagesError: If there are too few real images for ``QUANTILE``, or what ``scores`` raises for few images.
    """
    outside = outside_support(real, generated, QUANTILE)
    order = torch.randperm(len(outside), generator=torch.Generator().manual_seed(seed))
    at_random = torch.ones(len(outside), dtype=torch.bool)
    at_random[order[: int(outside.sum())]] = False
    all_of_them, fewer, pruned = (scores(kept) for kept in (torch.ones_like(at_random), at_random, ~outside))
    measured = [name for name in all_of_them if name in fewer and name in pruned]
    rows = tuple((name, all_of_them[name], fewer[name], pruned[name]) for name in measured)
    return PruningEffect(len(outside), int(outside.sum()), rows)
