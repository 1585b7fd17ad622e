"""The moments of a study as sections of a page and as tables."""

from typing import Any

import numpy as np
from torch import Tensor

from experiments.figures.moments import COVERED, beyond_axes, contour_plots, scatter_matrix
from experiments.measuring.moment_analysis import QUANTILE, MomentStudy, PruningEffect
from experiments.pages.elements import Html, heading, joined, paragraph
from experiments.pages.pictures import inline_figure
from experiments.pages.tables import table
from experiments.pages.text import csv_text
from lightning_modules.metrics.moments import NAMES

# Table 2 of the paper, for its own images.
PAPER_INFORMATION = (0.01772, 0.04087, 0.04096, 0.01138, 0.0)
PAPER_NEIGHBOURS = (5.44, 5.32, 5.32, 5.47, 5.53)


def sections(study: MomentStudy) -> list[Html]:
    """Return the analysis as pieces of a page, in the order of reading."""
    least, most = min(study.coverage.values()), max(study.coverage.values())
    return [
        heading("Moments of the pixel values"),
        paragraph(
            "Each image becomes five numbers: mean, variance, skewness, kurtosis and hyperskewness (the fifth) of its "
            "pixels on the scale from -1 to 1. They tell whether brightness and contrast are those of real images; "
            f"they do not see anatomy. Compared are {len(study.real):,} real and {len(study.generated):,} generated "
            "images, after Korkinof et al., Radiology: Artificial Intelligence 2021;3(2):e190181."
        ),
        _summary_table(study),
        paragraph("Median, and in brackets the quartiles."),
        heading("Scatter plots (their figure 3)", 3),
        inline_figure(scatter_matrix(study.real, study.generated, study.agreement, study.seed)),
        paragraph(
            "Each dot is an image; colours should mix. Histograms stand on the diagonal, the agreement of each pair "
            f"above it. {_beyond(study)}"
        ),
        heading("Agreement of moments and of pairs (in the manner of their table 1)", 3),
        _agreement_table(study),
        paragraph(
            "1: the moment, or the pair of moments, tells nothing of whether an image is real. 0: it always tells. "
            "Defined as 1 - I/H, with I the mutual information of the moments and the label, and H the most that it "
            "can be. Of two sets of real images the mean is about 0.97 with 50 images each, 0.98 with 100 and 0.99 "
            "with 500 or more: what is missing there is chance. The paper's table 1 gives 0.61 to 0.78 by a definition "
            "in its supplement, which this one does not follow; the two cannot be compared."
        ),
        heading("Mutual information with the label, and neighbours (their table 2)", 3),
        _information_table(study),
        paragraph(
            f"Mutual information: 0 if the moment does not tell real from generated, {study.most_information:.2f} if "
            "it always does. Neighbours: how many images, real or generated, lie within the distance to the third "
            "nearest of the own kind: 6 if both kinds cover the same values, 3 if they have none in common. The number "
            "of neighbours sees whether values are covered, mutual information also how often they occur. The paper's "
            "rows are for its own mammograms."
        ),
        heading("Density contours (their figure 6)", 3),
        inline_figure(contour_plots(study.real, study.generated)),
        paragraph(
            "Grey: density of the real images. Thin lines: ten contours that enclose 95 % to 99.99 % of the real "
            f"(blue) and of the generated images (orange). Thick lines, dashed for the generated, enclose {COVERED:g} "
            "%; above each plot stands how much of the real area within it the generated contour covers: here "
            f"{least:.0%} to {most:.0%}, in the paper 80 % to 91 %. Little cover means that kinds of real images are "
            "never generated (mode collapse). Two sets of real images do not reach 100 % either. The paper does not "
            "define its percentiles in its main text; here a contour encloses that share of the distribution."
        ),
        heading("Images outside the real support", 3),
        paragraph(_outside(study)),
    ]


def pruning_section(effect: PruningEffect) -> Html:
    """Return what pruning does to scores."""
    title, outside = heading("What pruning does", 3), f"{effect.pruned:,} of {effect.images:,} generated images lie"
    if not effect.rows:
        return joined([title, paragraph(f"{outside} outside the real support; without them too few are left.")])
    head = ("score", "all images", "as many left out at random", "outliers left out")
    rows = ([name.replace("_", " "), *(f"{value:.4g}" for value in values)] for name, *values in effect.rows)
    note = (
        f"{outside} outside the real support and are left out. Scores change with the number of images alone, so "
        "compare the last two columns."
    )
    return joined([title, table(head, rows), paragraph(note)])


def tables_csv(study: MomentStudy, effect: PruningEffect | None = None) -> str:
    """Return all numbers as CSV: which table, one or two names, the value."""
    lines: list[list[Any]] = [["table", "first", "second", "value"]]
    lines += [["images", "real", "", len(study.real)], ["images", "generated", "", len(study.generated)]]
    for which, points in (("real", study.real), ("generated", study.generated)):
        for name, values in zip(NAMES, _quartiles(points), strict=True):
            quartiles = zip(("lower quartile", "median", "upper quartile"), values, strict=True)
            lines += [[f"{which} {quartile}", name, "", value] for quartile, value in quartiles]
    for i, first in enumerate(NAMES):
        lines += [["agreement", first, NAMES[j], study.agreement[i][j]] for j in range(i, len(NAMES))]
    lines += [["mutual information", name, "", value] for name, value in zip(NAMES, study.information, strict=True)]
    lines += [["neighbours", name, "", value] for name, value in zip(NAMES, study.neighbours, strict=True)]
    lines += [["coverage", NAMES[i], NAMES[j], value] for (i, j), value in study.coverage.items()]
    lines.append(["outside the real support", "", "", study.outside])
    for name, *values in () if effect is None else effect.rows:
        kinds = ("all images", "left out at random", "outliers left out")
        lines += [["pruning", name, kind, value] for kind, value in zip(kinds, values, strict=True)]
    return csv_text(lines)


def _quartiles(points: Tensor) -> list[list[float]]:
    """Return lower quartile, median and upper quartile of each moment."""
    return np.quantile(points.numpy(), [0.25, 0.5, 0.75], axis=0).T.tolist()


def _summary_table(study: MomentStudy) -> Html:
    rows = [
        [name, *(f"{median:.3g} ({low:.3g} to {high:.3g})" for low, median, high in both)]
        for name, *both in zip(NAMES, _quartiles(study.real), _quartiles(study.generated), strict=True)
    ]
    return table(["moment", "real", "generated"], rows)


def _agreement_table(study: MomentStudy) -> Html:
    rows = [
        [first, *("" if j < i else f"{study.agreement[i][j]:.3f}" for j in range(len(NAMES)))]
        for i, first in enumerate(NAMES)
    ]
    return table(["", *NAMES], rows)


def _information_table(study: MomentStudy) -> Html:
    rows = [
        ["mutual information, nats", *(f"{value:.4f}" for value in study.information)],
        ["the same in the paper", *(f"{value:.4f}" for value in PAPER_INFORMATION)],
        ["neighbours", *(f"{value:.2f}" for value in study.neighbours)],
        ["the same in the paper", *(f"{value:.2f}" for value in PAPER_NEIGHBOURS)],
    ]
    return table(["", *NAMES], rows)


def _outside(study: MomentStudy) -> str:
    if study.outside is None:
        return f"{len(study.real)} real images are too few to tell which generated images lie outside."
    return (
        f"{study.outside:.1%} of the generated images are farther from the real ones, in all five moments together, "
        f"than {QUANTILE:.0%} of real images are from each other. Of fresh real images it would be about "
        f"{1 - QUANTILE:.0%}."
    )


def _beyond(study: MomentStudy) -> str:
    """Say what the scatter plots do not show."""
    ours, theirs = beyond_axes(study.real, study.generated)
    return f"Beyond the axes lie {ours:,} real and {theirs:,} generated images." if ours or theirs else ""
