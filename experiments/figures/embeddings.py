"""Figures of embeddings: principal components and kernel densities of Sahakyan 2024 (figures 4.1 to 4.15).

Section 4.3.1 fits a Gaussian to the embeddings of real images and one to those of generated images, as the Frechet
distance does, and draws samples of both. Section 4.3.2 shows these samples: their principal components in three and two
dimensions (figures 4.1, 4.2, 4.7, 4.8, 4.13, 4.14) and their kernel densities, together and by pairs (figures 4.3 to
4.6, 4.9 to 4.12, 4.15). Such samples look like Gaussians whatever the embeddings look like: a generator that draws
three images only looks as diverse as its covariance. So the embeddings themselves are drawn beside them.

Open in the text, and chosen here:
    What the components are fitted to: the embeddings of both sets; see ``project``. One fit for the samples and the
        embeddings, so that they can be compared.
    Scaling: none; embeddings are in their own units, as in the Frechet distance.
    Number of samples: as many as there are embeddings; of each set 2,000 at most are drawn.
    What densities are of: the components. The text says "features of samples", not which of the 2,048.
    Kernel and bandwidth: SciPy's ``gaussian_kde`` with its default, Gaussian with Scott's factor; of 1,000 images at
        most, since its time grows with them.
    Contours: they enclose 25, 50, 75 and 95 % of the images.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from experiments.figures.moments import GENERATED, REAL
from lightning_modules.metrics.agreement import density_levels
from lightning_modules.metrics.score import TooFewImagesError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

COMPONENTS = 3
ENCLOSED = (25.0, 50.0, 75.0, 95.0)  # per cent of the images within a contour
_DRAWN = 2000  # images of each set in a scatter plot
_IN_DENSITY = 1000  # images of each set in a kernel density
_PLACES = 60  # of the grid of a density, along each axis
_NARROW = 0.002  # of an axis: contours of a set with a smaller standard deviation are too near each other to be seen
_DASHES = (0, (3.0, 1.5))
_AS_PAPER = "samples of the Gaussians fitted to the embeddings (as in the paper)"
_ITSELF = "the embeddings themselves"


@dataclass(frozen=True)
class Projection:
    """Principal components of two sets of embeddings.

    Attributes:
        real: (N, 3) float64.
        generated: (M, 3) float64.
        explained: Share of the variance of both sets together that lies along each component, falling.
    """

    real: Tensor
    generated: Tensor
    explained: tuple[float, float, float]


def project(real: Tensor, generated: Tensor) -> Projection:
    """Return the first three principal components of embeddings (figures 4.1 and 4.2).

    They are fitted to both sets, and each counts as much as the other however many images it has. Components of the
    real images alone would hide whatever only generated images vary in. The variance includes the distance between the
    sets' means. The sign of a component is such that its largest loading is positive.

    Args:
        real: Features (N, D), N at least 2 and D at least 3.
        generated: Features (M, D), M at least 2.

    Raises:
        TooFewImagesError: If a set has fewer than 2 images.
        ValueError: If features differ in length, have fewer than 3 numbers, or are not finite.
    """
    from sklearn.utils.extmath import randomized_svd  # its PCA takes no weights

    _check(real, generated)
    ours, theirs = (features.detach().to("cpu", torch.float64) for features in (real, generated))
    centre = (ours.mean(dim=0) + theirs.mean(dim=0)) / 2.0
    centred = [features - centre for features in (ours, theirs)]
    weighted = torch.cat([features / (2.0 * len(features)) ** 0.5 for features in centred]).numpy()
    _, lengths, found = randomized_svd(weighted, COMPONENTS, random_state=0)
    largest = found[np.arange(COMPONENTS), np.abs(found).argmax(axis=1)]
    components = torch.from_numpy(found * np.where(largest < 0.0, -1.0, 1.0)[:, None])
    variance = float(np.square(weighted).sum()) or 1.0  # 0 if all embeddings are one: nothing to explain
    first, second, third = (float(length**2 / variance) for length in lengths)
    return Projection(centred[0] @ components.T, centred[1] @ components.T, (first, second, third))


def gaussian_samples(features: Tensor, count: int, seed: int) -> Tensor:
    """Draw from the Gaussian with the mean and the covariance of features (section 4.3.1).

    Works where images are fewer than features: samples are random sums of the centred features, which needs no root of
    a covariance matrix, singular then; they lie where images differ, and nowhere else.

    Args:
        features: (N, D), N at least 2; the covariance is the unbiased one.
        count: Samples.
        seed: Of the samples.

    Returns:
        (count, D) float64.

    Raises:
        TooFewImagesError: If there are fewer than 2 images.
    """
    if len(features) < 2:
        raise TooFewImagesError(f"a Gaussian needs at least 2 images, got {len(features)}")
    values = features.detach().to("cpu", torch.float64)
    mean = values.mean(dim=0)
    root = torch.linalg.qr(values - mean, mode="r").R  # R'R = X'X with min(N, D) rows, so that less noise is drawn
    noise = torch.randn(count, len(root), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return mean + noise @ root / (len(values) - 1) ** 0.5


def scatter_figure(real: Tensor, generated: Tensor, seed: int) -> "Figure":
    """Draw principal components in 3-D and 2-D, and their density (figures 4.1 to 4.3, 4.7 to 4.9, 4.13 to 4.15).

    Top row: samples of the two Gaussians, as in the paper. Bottom row: the embeddings. Axes are the same in both, and
    no point lies beyond them. Where a set is narrower than contours can show, as that of a collapsed generator, its
    points are drawn in place of contours.

    Args:
        real: Features (N, D), N at least 2 and D at least 3.
        generated: Features (M, D), M at least 2.
        seed: Of the samples, of the choice of what is drawn, and of what lies on top.

    Raises:
        TooFewImagesError: If a set has fewer than 2 images.
        ValueError: If features differ in length, have fewer than 3 numbers, or are not finite.
    """
    from matplotlib.figure import Figure

    found = project(real, generated)
    rows = _rows(found, seed)
    limits = _limits(rows)
    names = _names(found)
    figure = Figure(figsize=(11, 8.2), layout="constrained")
    for place, (title, sets) in zip(
        figure.subfigures(2, 1, squeeze=False, hspace=0.03)[:, 0], rows.items(), strict=True
    ):
        place.suptitle(title, fontsize=13)
        solid = place.add_subplot(1, 3, 1, projection="3d")
        flat, density = place.add_subplot(1, 3, 2), place.add_subplot(1, 3, 3)
        points, colours = _mixed(sets, seed)
        solid.scatter(*points.T, s=5, c=colours, alpha=0.4, linewidths=0, depthshade=False)
        solid.set(xlim=limits[0], ylim=limits[1], zlim=limits[2])
        _plain_solid(solid)
        flat.scatter(points[:, 0], points[:, 1], s=6, c=colours, alpha=0.4, linewidths=0)
        for ours, colour, line in _styled(sets):
            _draw_density(density, ours[:, :2], limits[:2], colour, line)
        for axes in (flat, density):
            axes.set(xlim=limits[0], ylim=limits[1])
            axes.set_xlabel(names[0], fontsize=11)
            axes.set_ylabel(names[1], fontsize=11)
            _plain(axes)
        flat.set_title("2-D", fontsize=11)
        solid.set_title("3-D", fontsize=11)
        density.set_title("kernel density: 25, 50, 75, 95 % within", fontsize=11)
    figure.legend(handles=_handles(), loc="outside lower center", ncols=2, fontsize=12, frameon=False)
    return figure


def pairs_figure(real: Tensor, generated: Tensor, seed: int) -> "Figure":
    """Draw kernel densities of the first three components, alone and by pairs (figures 4.4 to 4.6, 4.10 to 4.12).

    Left: samples of the two Gaussians, as in the paper. Right: the embeddings. Densities of single components stand on
    the diagonal, each with the area 1. A set that is narrower than can be shown is drawn as a vertical line on the
    diagonal and as its points below.

    Args:
        real: Features (N, D), N at least 2 and D at least 3.
        generated: Features (M, D), M at least 2.
        seed: Of the samples, and of the choice of what is drawn.

    Raises:
        TooFewImagesError: If a set has fewer than 2 images.
        ValueError: If features differ in length, have fewer than 3 numbers, or are not finite.
    """
    from matplotlib.figure import Figure

    found = project(real, generated)
    rows = _rows(found, seed)
    limits = _limits(rows)
    names = _names(found)
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    for place, (title, sets) in zip(figure.subfigures(1, 2, squeeze=False, wspace=0.03)[0], rows.items(), strict=True):
        place.suptitle(title, fontsize=11)
        _pairs(place, sets, limits, names)
    figure.legend(handles=_handles(), loc="outside lower center", ncols=2, fontsize=12, frameon=False)
    return figure


# What is drawn --------------------------------------------------------------------------------------------------------

Sets = tuple[np.ndarray, np.ndarray]  # components of real and generated images, (P, 3) and (Q, 3)
Limits = list[tuple[float, float]]


def _check(real: Tensor, generated: Tensor) -> None:
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"expected features (N, D) and (M, D), got shapes {tuple(real.shape)} and {tuple(generated.shape)}"
        )
    if min(len(real), len(generated)) < 2:
        raise TooFewImagesError(f"components need at least 2 images of each set, got {len(real)} and {len(generated)}")
    if real.shape[1] < COMPONENTS:
        raise ValueError(f"features of {real.shape[1]} numbers have no {COMPONENTS} components")
    if not (real.isfinite().all() and generated.isfinite().all()):
        raise ValueError("features hold values that are not finite")


def _rows(found: Projection, seed: int) -> dict[str, Sets]:
    """Return what the figures show, by title; at most 2,000 of each set.

    Samples are drawn of the components' Gaussian: it is the projection of the embeddings' Gaussian, without the time.
    """
    random = torch.Generator().manual_seed(seed)
    both = (found.real, found.generated)
    ours, theirs = (points[torch.randperm(len(points), generator=random)[:_DRAWN]].numpy() for points in both)
    samples = [gaussian_samples(both[i], min(len(both[i]), _DRAWN), 2 * seed + i).numpy() for i in range(2)]
    return {_AS_PAPER: (samples[0], samples[1]), _ITSELF: (ours, theirs)}


def _limits(rows: dict[str, Sets]) -> Limits:
    """Return axes that hold every point of both sets and both rows."""
    every = np.concatenate([points for sets in rows.values() for points in sets])
    low, high = every.min(axis=0), every.max(axis=0)
    widest = float((high - low).max()) or 10.0
    margins = np.maximum(0.05 * (high - low), 1e-3 * widest)  # rounding alone must not fill an axis
    return [(float(a - m), float(b + m)) for a, b, m in zip(low, high, margins, strict=True)]


def _names(found: Projection) -> list[str]:
    return [f"component {i + 1} ({100 * share:.0f} %)" for i, share in enumerate(found.explained)]


def _mixed(sets: Sets, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points of both sets in random order and their colours, so that no set covers the other."""
    colours = np.repeat([REAL, GENERATED], [len(points) for points in sets])
    order = np.random.default_rng(seed).permutation(len(colours))
    return np.concatenate(sets)[order], colours[order]


def _styled(sets: Sets) -> list[tuple[np.ndarray, str, object]]:
    """Return what densities are of, with its colour and its line; the real contour shows through where both agree."""
    return [(sets[0][:_IN_DENSITY], REAL, "solid"), (sets[1][:_IN_DENSITY], GENERATED, _DASHES)]


# Axes -----------------------------------------------------------------------------------------------------------------


def _pairs(place: "SubFigure", sets: Sets, limits: Limits, names: list[str]) -> None:
    grid = place.subplots(COMPONENTS, COMPONENTS, squeeze=False)
    for row in range(COMPONENTS):
        for column in range(COMPONENTS):
            axes = grid[row, column]
            if column > row:
                axes.axis("off")
                continue
            for points, colour, line in _styled(sets):
                if column == row:
                    _draw_single(axes, points[:, row], limits[row], colour, line)
                else:
                    _draw_density(axes, points[:, [column, row]], [limits[column], limits[row]], colour, line)
            axes.set_xlim(limits[column])
            axes.set_ylim((0.0, None) if column == row else limits[row])
            _plain(axes)
            if column == row:
                axes.set_yticks([])
            if row == COMPONENTS - 1:
                axes.set_xlabel(names[column], fontsize=9)
            else:
                axes.tick_params(labelbottom=False)
            if column == 0:
                axes.set_ylabel(names[row] if row else "density", fontsize=9)
            elif column < row:
                axes.tick_params(labelleft=False)


def _draw_single(axes: "Axes", values: np.ndarray, limits: tuple[float, float], colour: str, line: object) -> None:
    """Draw the density of one component, or a vertical line where all images have one value."""
    from scipy.stats import gaussian_kde

    if values.std() < _NARROW * (limits[1] - limits[0]):
        axes.axvline(values.mean(), color=colour, linestyle=line, linewidth=1.8)
        return
    density = gaussian_kde(values)
    margin = 3.0 * density.covariance[0, 0] ** 0.5
    places = np.linspace(values.min() - margin, values.max() + margin, 300)
    height = density(places)
    axes.fill_between(places, height, color=colour, alpha=0.15, linewidth=0)
    axes.plot(places, height, color=colour, linestyle=line, linewidth=1.4)


def _draw_density(axes: "Axes", points: np.ndarray, limits: Limits, colour: str, line: object) -> None:
    """Draw contours of the density of two components, or the points where these lie in one place or on a line.

    The grid follows the set's own principal axes, so that a set that is narrow in a slanted direction is resolved.
    """
    from scipy.stats import gaussian_kde

    low, high = np.array(limits).T
    within = (points - low) / (high - low)
    centre = within.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(within.T))
    if variances[0] < _NARROW**2:
        axes.scatter(points[:, 0], points[:, 1], s=10, color=colour, alpha=0.5, linewidths=0)
        return
    # A Gaussian kernel with the points' own covariance is a round one where this covariance is 1.
    root = directions * np.sqrt(variances)
    white = (within - centre) @ np.linalg.inv(root).T
    ends = np.quantile(white, [0.002, 0.998], axis=0) + np.array([[-1.0], [1.0]])
    u, v = np.meshgrid(*np.linspace(ends[0], ends[1], _PLACES, axis=1))
    density = gaussian_kde(white.T)(np.stack([u.ravel(), v.ravel()])).reshape(u.shape)
    x, y = (np.stack([u, v], axis=-1) @ root.T + centre).transpose(2, 0, 1) * (high - low)[:, None, None] + low[
        :, None, None
    ]
    levels = sorted(set(density_levels(density, *ENCLOSED)))
    axes.contourf(x, y, density, levels=[levels[0], density.max()], colors=[colour], alpha=0.12)
    axes.contour(x, y, density, levels=levels, colors=colour, linewidths=1.2, linestyles=[line])


def _plain(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _plain_solid(axes: "Axes") -> None:
    """Name the three axes of a drawing in 3-D; the shares stand beside the flat one."""
    from matplotlib.ticker import MaxNLocator

    for i, axis in enumerate((axes.xaxis, axes.yaxis, axes.zaxis)):  # type: ignore[attr-defined]
        axis.set_major_locator(MaxNLocator(4))
        axis.set_label_text(f"component {i + 1}", fontsize=9)
    axes.tick_params(labelsize=8, pad=0)
    axes.set_box_aspect(None, zoom=0.82)  # type: ignore[call-arg]  # the layout sees no labels of axes in 3-D


def _handles() -> "list[Artist]":
    from matplotlib.patches import Patch

    return [Patch(color=REAL, label="real"), Patch(color=GENERATED, label="generated")]
