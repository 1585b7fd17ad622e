"""Figures of moments: the scatter matrix and the kernel densities of Korkinof 2021 (figures 3 and 6)."""

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics.agreement import Contours, contour_coverage, density_levels
from lightning_modules.metrics.moments import NAMES

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REAL, GENERATED = "#0072B2", "#D55E00"  # Okabe and Ito: told apart with any colour vision, and in grey
_DASHES = (0, (3.0, 2.0))  # the real contour shows through where the two agree
PAIRS = tuple(combinations(range(len(NAMES)), 2))
PERCENTILES = tuple(np.linspace(95.0, 99.99, 10))
COVERED = 97.0  # percentile whose coverage is given
_DRAWN = 2000  # images of each set in the scatter plots; more hide each other


def scatter_matrix(real: Tensor, generated: Tensor, agreement: tuple[tuple[float, ...], ...], seed: int) -> "Figure":
    """Draw pairs of moments below the diagonal, histograms on it, and the pairs' agreement above it.

    Args:
        real: Moments (N, 5).
        generated: Moments (M, 5).
        agreement: 5 x 5.
        seed: Chooses the images that are drawn where there are many, and which lie on top.
    """
    from matplotlib.figure import Figure

    size = len(NAMES)
    figure = Figure(figsize=(11, 11), layout="constrained")
    grid = figure.subplots(size, size, squeeze=False)
    limits = [_limits(real[:, i], generated[:, i]) for i in range(size)]
    points, colours = _drawn(real, generated, seed)
    for row in range(size):
        for column in range(size):
            axes = grid[row, column]
            if column > row:
                _write_agreement(axes, agreement[row][column])
                continue
            if column == row:
                _histograms(axes, real[:, row], generated[:, row], limits[row])
                axes.set_title(f"agreement {agreement[row][row]:.2f}", fontsize=10, color="#555555")
            else:
                axes.scatter(points[:, column], points[:, row], s=5, c=colours, alpha=0.45, linewidths=0)
                axes.set_ylim(limits[row])
            axes.set_xlim(limits[column])
            _plain_axes(axes)
            if row == size - 1:
                axes.set_xlabel(NAMES[column], fontsize=12)
            else:
                axes.tick_params(labelbottom=False)
            if column == 0 and row:
                axes.set_ylabel(NAMES[row], fontsize=12)
            elif column < row:
                axes.tick_params(labelleft=False)
    grid[0, 0].set_ylabel("images", fontsize=12)
    figure.legend(handles=_patches(), loc="outside upper center", ncols=2, fontsize=13, frameon=False)
    return figure


def beyond_axes(real: Tensor, generated: Tensor) -> tuple[int, int]:
    """Return how many real and generated images the scatter matrix's axes leave out, in any moment."""
    low, high = torch.tensor([_limits(real[:, i], generated[:, i]) for i in range(len(NAMES))]).T
    ours, theirs = (int(((points < low) | (points > high)).any(dim=1).sum()) for points in (real, generated))
    return ours, theirs


def contour_plots(real: Tensor, generated: Tensor) -> "Figure":
    """Draw ten contours between the 95th and the 99.99th percentile of each pair of moments, real and generated.

    Args:
        real: Moments (N, 5).
        generated: Moments (M, 5).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 15), layout="constrained")
    places = list(figure.subplots(4, 3).flat)
    for axes, pair in zip(places, PAIRS, strict=False):
        found = contour_coverage(real, generated, pair, COVERED)
        _contours(axes, found)
        axes.set_title(f"{found.coverage:.0%} of real covered", fontsize=12)
        axes.set_xlabel(NAMES[pair[0]], fontsize=12)
        axes.set_ylabel(NAMES[pair[1]], fontsize=12)
    for axes in places[len(PAIRS) :]:
        axes.axis("off")
    places[-2].legend(handles=_contour_handles(), loc="center left", fontsize=12, frameon=False, borderaxespad=0)
    return figure


def _contours(axes: "Axes", found: Contours) -> None:
    every = slice(None, None, 2)  # of the fine grid that coverage is computed on; half of it draws as smoothly
    x, y, real, generated = found.x[every], found.y[every], found.real[every, every], found.generated[every, every]
    extent = (x[0], x[-1], y[0], y[-1])
    axes.imshow(real, cmap="Greys", vmax=1.6 * real.max(), origin="lower", extent=extent, aspect="auto")
    shown = np.zeros(real.shape, dtype=bool)
    for density, colour, line in ((real, REAL, "solid"), (generated, GENERATED, _DASHES)):
        covered, *ten = density_levels(density, COVERED, *PERCENTILES)
        rising = sorted(set(ten))  # copies of one image have one level
        axes.contour(x, y, density, levels=rising, colors=colour, linewidths=0.5, alpha=0.8)
        axes.contour(x, y, density, levels=[covered], colors=colour, linewidths=2.0, linestyles=[line])
        shown |= density >= rising[0]
    axes.set_xlim(_ends(x[shown.any(axis=0)]))
    axes.set_ylim(_ends(y[shown.any(axis=1)]))
    _plain_axes(axes)


def _drawn(real: Tensor, generated: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points (P, 5) of both sets in random order and their colours, so that no set covers the other."""
    random = torch.Generator().manual_seed(seed)
    parts = [points[torch.randperm(len(points), generator=random)[:_DRAWN]] for points in (real, generated)]
    colours = np.repeat([REAL, GENERATED], [len(part) for part in parts])
    order = torch.randperm(len(colours), generator=random).numpy()
    return torch.cat(parts).numpy()[order], colours[order]


def _limits(real: Tensor, generated: Tensor) -> tuple[float, float]:
    """Return an axis that holds 99.8 % of either set: one odd image would leave no room for the others."""
    ends = np.array([np.quantile(values.numpy(), [0.001, 0.999]) for values in (real, generated)])
    low, high = float(ends.min()), float(ends.max())
    margin = 0.08 * (high - low) or 0.5
    return low - margin, high + margin


def _histograms(axes: "Axes", real: Tensor, generated: Tensor, limits: tuple[float, float]) -> None:
    edges = np.linspace(*limits, 41)
    for values, colour in ((real, REAL), (generated, GENERATED)):
        shares = np.histogram(values.numpy(), edges)[0] / len(values)
        axes.stairs(shares, edges, color=colour, alpha=0.2, fill=True)
        axes.stairs(shares, edges, color=colour, linewidth=1.4)
    axes.set_ylim(bottom=0)
    axes.set_yticks([])


def _write_agreement(axes: "Axes", value: float) -> None:
    axes.axis("off")
    axes.text(0.5, 0.5, f"{value:.2f}", ha="center", va="center", fontsize=16, transform=axes.transAxes)
    axes.text(0.5, 0.3, "agreement", ha="center", va="center", fontsize=10, color="#555555", transform=axes.transAxes)


def _plain_axes(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(3))
    if axes.get_yticks().size:
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _ends(places: np.ndarray) -> tuple[float, float]:
    margin = 0.05 * (places[-1] - places[0])
    return places[0] - margin, places[-1] + margin


def _patches() -> "list[Artist]":
    from matplotlib.patches import Patch

    return [Patch(color=REAL, label="real"), Patch(color=GENERATED, label="generated")]


def _contour_handles() -> "list[Artist]":
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    thick = f"{COVERED:g} % of the"
    return [
        Line2D([], [], color=REAL, linewidth=2.0, label=f"{thick} real images"),
        Line2D([], [], color=GENERATED, linewidth=2.0, linestyle=_DASHES, label=f"{thick} generated images"),
        Line2D([], [], color="black", linewidth=0.5, label="ten contours, 95 % to 99.99 %"),
        Patch(color="#999999", label="density of the real images"),
    ]
