"""Does a generator repeat its training images, or tell who was among them? By nearest neighbours.

Any vectors will do: an extractor's features also see copies that were shifted or cropped a little, shrunken pixels see
nothing else than copies.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from lightning_modules.metrics.distances import nearest, neighbour_radii
from lightning_modules.metrics.pixels import Pixels
from lightning_modules.metrics.score import MemorisationScore
from lightning_modules.metrics.separation import auc


@dataclass(frozen=True)
class Copy:
    """A generated image that lies nearer to a training image than real images of other patients do.

    Attributes:
        generated: Index of the generated image.
        train: Index of the training image that is nearest to it.
        distance: Euclidean distance of their vectors.
        threshold: Distance below which it counts as a copy.
    """

    generated: int
    train: int
    distance: float
    threshold: float


def neighbour_distance_ratio(train: Tensor, held_out: Tensor, generated: Tensor) -> float:
    """Return how far a generated image is from the training images, in units of how far a new patient's image is.

    The median distance of a generated image to its nearest training image, divided by that of a held-out image: 1 if
    generated images are as new as new patients are, 0 if more than half of them are copies.

    Args:
        train: Vectors (N, D).
        held_out: Vectors (M, D) of real images of other patients.
        generated: Vectors (K, D).

    Raises:
        ValueError: If more than half of the held-out images are training images.
    """
    usual = nearest(held_out, train)[0].median()
    if usual == 0:
        raise ValueError(
            "more than half of the held-out images equal training images: there is nothing to compare with"
        )
    return float(nearest(generated, train)[0].median() / usual)


def authenticity(train: Tensor, generated: Tensor, radii: Tensor | None = None) -> float:
    """Return the share of generated images that are no noisy version of a training image.

    Alaa, van Breugel, Saveliev and van der Schaar 2022 (arXiv:2102.08921, section 4.3): an image is authentic if it is
    farther from its nearest training image than that training image is from its nearest other training image. Real
    images of other patients do not reach 1 either, and how near they come depends on the vectors: compare with theirs.

    Args:
        train: Vectors (N, D), N at least 2.
        generated: Vectors (K, D).
        radii: Squared distance (N,) of each training image to the nearest other one, where it is known.
    """
    distances, which = nearest(generated, train)
    radii = neighbour_radii(train, 1) if radii is None else radii
    return float((distances > radii.double().sqrt()[which]).double().mean())


def copy_threshold(train: Tensor, held_out: Tensor, false_alarms: float = 0.01) -> float:
    """Return the distance to the nearest training image below which an image is taken for a copy.

    It is the r-th smallest distance of M held-out images, r = max(1, false_alarms (M + 1)) rounded down. A real image
    of yet another patient is as likely as a held-out one to be the nearest of all, so it falls below with probability
    r / (M + 1) at most: that bounds the share of false alarms, whatever the distribution.

    Args:
        train: Vectors (N, D).
        held_out: Vectors (M, D) of real images of other patients.
        false_alarms: Share of real images that may be taken for copies. With fewer than 1 / false_alarms - 1 held-out
            images it cannot be kept; the share is then 1 / (M + 1).

    Raises:
        ValueError: If so many held-out images equal training images that no distance lies below the threshold.
    """
    distances = nearest(held_out, train)[0].sort().values
    rank = threshold_rank(len(held_out), false_alarms)
    threshold = float(distances[rank - 1])
    if threshold == 0.0:
        raise ValueError(
            f"{int((distances == 0).sum())} of {len(held_out)} held-out images equal training images, so that copies "
            "cannot be told from new images; see to it that the splits share no patients and the images are not blank"
        )
    return threshold


def threshold_rank(held_out: int, false_alarms: float = 0.01) -> int:
    """Return which of the held-out images' distances, the smallest first, is ``copy_threshold``."""
    return max(1, int(false_alarms * (held_out + 1)))


def copies(train: Tensor, held_out: Tensor, generated: Tensor, false_alarms: float = 0.01) -> list[Copy]:
    """Return the generated images that are copies of training images, or nearly so; the nearest first.

    Args:
        train: Vectors (N, D).
        held_out: Vectors (M, D) of real images of other patients.
        generated: Vectors (K, D).
        false_alarms: Share of real images that may be taken for copies; see ``copy_threshold``.

    Raises:
        ValueError: If too many held-out images equal training images.
    """
    threshold = copy_threshold(train, held_out, false_alarms)
    distances, which = nearest(generated, train)
    found = (distances < threshold).nonzero().flatten()
    found = found[distances[found].argsort(stable=True)]
    return [Copy(int(i), int(which[i]), float(distances[i]), threshold) for i in found]


def membership_inference_auc(train: Tensor, held_out: Tensor, generated: Tensor) -> float:
    """Return how well an attacker who has only generated images tells who was in the training set.

    The black-box attack of Chen, Yu, Zhang and Fritz 2020 (GAN-Leaks, arXiv:1909.03935, section 5.1): an image counts
    as a member the more, the nearer it is to a generated one. The area under the ROC curve of training images against
    images of other patients: 0.5 if nothing leaks, 1 if membership is certain.

    Args:
        train: Vectors (N, D), the members.
        held_out: Vectors (M, D) of real images of other patients.
        generated: Vectors (K, D).
    """
    return auc(-nearest(train, generated)[0], -nearest(held_out, generated)[0])


class NeighbourDistanceRatio(MemorisationScore):
    """Distance of generated images to training images, in units of held-out images' distance."""

    better = "as real"
    bounds = (0.0, math.inf)
    steady_from = 50  # the 95 % interval of a median of fewer distances reaches beyond their 36th and 64th percentile
    at_most = 5_000

    def measure(self, train: Tensor, held_out: Tensor, generated: Tensor) -> dict[str, float]:
        """Return ``neighbour_distance_ratio``."""
        self.check(train, held_out, generated)
        return {"neighbour_distance_ratio": neighbour_distance_ratio(train, held_out, generated)}


class Authenticity(MemorisationScore):
    """Share of generated images that are no noisy version of a training image."""

    better = "as real"
    bounds = (0.0, 1.0)
    steady_from = 250  # a share of fewer images has a standard error above 3 %
    at_most = 5_000

    def __init__(self) -> None:
        self._known: tuple[Tensor, Tensor] | None = None  # training images and their radii

    def measure(self, train: Tensor, held_out: Tensor, generated: Tensor) -> dict[str, float]:
        """Return ``authenticity``."""
        self.check(train, held_out, generated)
        if self._known is None or self._known[0] is not train:  # which are the same for every half
            self._known = train, neighbour_radii(train, 1)
        return {"authenticity": authenticity(train, generated, self._known[1])}


class Copies(MemorisationScore):
    """Share of generated images that are copies of training images, in pixels; all of these are searched.

    Args:
        false_alarms: Share of real images that may be taken for copies.
    """

    better = "lower"
    bounds = (0.0, 1.0)
    reads: Pixels

    def __init__(self, false_alarms: float = 0.01) -> None:
        if not 0.0 < false_alarms < 1.0:
            raise ValueError(f"false_alarms={false_alarms}: must lie between 0 and 1")
        self.false_alarms, self.reads = false_alarms, Pixels()

    def enough(self, dimensions: int) -> int:
        """Return the held-out images without which the share of false alarms cannot be kept.

        Args:
            dimensions: Length of a vector; of no influence.
        """
        return round(1.0 / self.false_alarms) - 1

    def measure(self, train: Tensor, held_out: Tensor, generated: Tensor) -> dict[str, float]:
        """Return ``copied_share``."""
        self.check(train, held_out, generated)
        return {"copied_share": len(copies(train, held_out, generated, self.false_alarms)) / len(generated)}


class MembershipInference(MemorisationScore):
    """How well generated images give away who was in the training set."""

    better = "lower"
    bounds = (0.0, 1.0)
    steady_from = 100  # with fewer the standard error of the area is above 0.04
    at_most = 5_000

    def measure(self, train: Tensor, held_out: Tensor, generated: Tensor) -> dict[str, float]:
        """Return ``membership_auc``."""
        self.check(train, held_out, generated)
        return {"membership_auc": membership_inference_auc(train, held_out, generated)}
