"""Do the moments of real and generated images agree? ``python -m experiments.measuring.moments REAL GENERATED``.

The analysis of Korkinof 2021 (Radiology: Artificial Intelligence 3(2):e190181) on two folders of 8- or 16-bit PNG or
DICOM files: agreement and neighbours (tables 1 and 2), the scatter matrix and the density contours (figures 3 and 6),
and what leaving out generated images far from all real ones does. MLO and CC are two calls. Writes ``report.html``,
which needs no network, and ``tables.csv``.
"""

import argparse
import csv
import html
import io
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.decoding.dicom import read_dicom
from datamodules.decoding.readers import DICOM, is_deep, read_grey
from datamodules.decoding.value_range import ends_of, range_of, share_used, unlike_shares
from datamodules.files.cache import content_hashes
from datamodules.files.errors import DataError, UnreadableImageError
from datamodules.files.files import find_files
from datamodules.records.mammography_layouts import view_of
from experiments.figures.moments import COVERED, PAIRS, beyond_axes, contour_plots, scatter_matrix
from experiments.measuring.folders import FileSet, copies_among, image_cache, overlap, said_of_copies
from experiments.record.report import STYLE, inline_figure
from experiments.record.run_directory import write_text
from lightning_modules.metrics.agreement import MomentAgreement, agreement, contour_coverage, neighbours_within
from lightning_modules.metrics.moments import NAMES, moments, moments_of_levels
from lightning_modules.metrics.mutual_information import label_entropy
from lightning_modules.metrics.pruning import outside_support
from lightning_modules.metrics.score import TooFewImagesError

QUANTILE = 0.99  # share of real images that count as inside their own support
# Table 2 of the paper, for its own images.
PAPER_INFORMATION = (0.01772, 0.04087, 0.04096, 0.01138, 0.0)
PAPER_NEIGHBOURS = (5.44, 5.32, 5.32, 5.47, 5.53)


# The analysis ---------------------------------------------------------------------------------------------------------


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


# The report -----------------------------------------------------------------------------------------------------------


def sections(study: MomentStudy) -> list[str]:
    """Return the analysis as pieces of HTML that need no file, in the order of reading."""
    least, most = min(study.coverage.values()), max(study.coverage.values())
    return [
        "<h2>Moments of the pixel values</h2>"
        "<p>Each image becomes five numbers: mean, variance, skewness, kurtosis and hyperskewness (the fifth) of its "
        "pixels on the scale from -1 to 1. They tell whether brightness and contrast are those of real images; they do "
        f"not see anatomy. Compared are {len(study.real):,} real and {len(study.generated):,} generated images, after "
        "Korkinof et al., Radiology: Artificial Intelligence 2021;3(2):e190181.</p>"
        + _summary_table(study)
        + "<p>Median, and in brackets the quartiles.</p>",
        "<h3>Scatter plots (their figure 3)</h3>"
        + inline_figure(scatter_matrix(study.real, study.generated, study.agreement, study.seed))
        + "<p>Each dot is an image; colours should mix. Histograms stand on the diagonal, the agreement of each pair "
        f"above it. {_beyond(study)}</p>",
        "<h3>Agreement of moments and of pairs (in the manner of their table 1)</h3>"
        + _agreement_table(study)
        + "<p>1: the moment, or the pair of moments, tells nothing of whether an image is real. 0: it always tells. "
        "Defined as 1 - I/H, with I the mutual information of the moments and the label, and H the most that it can "
        "be. Of two sets of real images the mean is about 0.97 with 50 images each, 0.98 with 100 and 0.99 with "
        "500 or more: what is missing there is chance. The paper's table 1 gives 0.61 to 0.78 by a definition in "
        "its supplement, which this one does not follow; the two cannot be compared.</p>",
        "<h3>Mutual information with the label, and neighbours (their table 2)</h3>"
        + _information_table(study)
        + f"<p>Mutual information: 0 if the moment does not tell real from generated, {study.most_information:.2f} if "
        "it always does. Neighbours: how many images, real or generated, lie within the distance to the third "
        "nearest of the own kind: 6 if both kinds cover the same values, 3 if they have none in common. The number of "
        "neighbours sees whether values are covered, mutual information also how often they occur. The paper's "
        "rows are for its own mammograms.</p>",
        "<h3>Density contours (their figure 6)</h3>"
        + inline_figure(contour_plots(study.real, study.generated))
        + "<p>Grey: density of the real images. Thin lines: ten contours that enclose 95 % to 99.99 % of the real "
        f"(blue) and of the generated images (orange). Thick lines, dashed for the generated, enclose {COVERED:g} %; "
        "above each plot stands how much of the real area within it the generated contour covers: here "
        f"{least:.0%} to {most:.0%}, in the paper 80 % to 91 %. Little cover means that kinds of real images are never "
        "generated (mode collapse). Two sets of real images do not reach 100 % either. The paper does not define its "
        "percentiles in its main text; here a contour encloses that share of the distribution.</p>",
        "<h3>Images outside the real support</h3>" + _outside(study),
    ]


def pruning_section(effect: PruningEffect) -> str:
    """Return what pruning does to scores as HTML."""
    if not effect.rows:
        return (
            f"<h3>What pruning does</h3><p>{effect.pruned:,} of {effect.images:,} generated images lie outside the "
            "real support; without them too few are left to be measured.</p>"
        )
    body = "".join(
        f"<tr><td>{html.escape(name.replace('_', ' '))}" + "".join(f"<td>{value:.4g}" for value in values)
        for name, *values in effect.rows
    )
    head = "<tr><th>score<th>all images<th>as many left out at random<th>outliers left out"
    return (
        f"<h3>What pruning does</h3><table>{head}{body}</table><p>{effect.pruned:,} of {effect.images:,} generated "
        "images lie outside the real support and are left out. Scores change with the number of images alone, so "
        "compare the last two columns.</p>"
    )


def tables_csv(study: MomentStudy, effect: PruningEffect | None = None) -> str:
    """Return all numbers as CSV: which table, one or two names, the value."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["table", "first", "second", "value"])
    writer.writerow(["images", "real", "", len(study.real)])
    writer.writerow(["images", "generated", "", len(study.generated)])
    for which, points in (("real", study.real), ("generated", study.generated)):
        for name, values in zip(NAMES, _quartiles(points), strict=True):
            writer.writerows(
                [f"{which} {quartile}", name, "", value]
                for quartile, value in zip(("lower quartile", "median", "upper quartile"), values, strict=True)
            )
    for i, first in enumerate(NAMES):
        writer.writerows(["agreement", first, NAMES[j], study.agreement[i][j]] for j in range(i, len(NAMES)))
    writer.writerows(["mutual information", *row] for row in zip(NAMES, [""] * 5, study.information, strict=True))
    writer.writerows(["neighbours", *row] for row in zip(NAMES, [""] * 5, study.neighbours, strict=True))
    writer.writerows(["coverage", NAMES[i], NAMES[j], value] for (i, j), value in study.coverage.items())
    writer.writerow(["outside the real support", "", "", "" if study.outside is None else study.outside])
    for name, *values in () if effect is None else effect.rows:
        kinds = ("all images", "left out at random", "outliers left out")
        writer.writerows(["pruning", name, kind, value] for kind, value in zip(kinds, values, strict=True))
    return buffer.getvalue()


def _quartiles(points: Tensor) -> list[list[float]]:
    """Return lower quartile, median and upper quartile of each moment."""
    return np.quantile(points.numpy(), [0.25, 0.5, 0.75], axis=0).T.tolist()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    header = "".join(f"<th>{cell}" for cell in head)
    return f"<table><tr>{header}" + "".join("<tr>" + "".join(f"<td>{c}" for c in row) for row in rows) + "</table>"


def _summary_table(study: MomentStudy) -> str:
    rows = [
        [name, *(f"{median:.3g} ({low:.3g} to {high:.3g})" for low, median, high in both)]
        for name, *both in zip(NAMES, _quartiles(study.real), _quartiles(study.generated), strict=True)
    ]
    return _table(["moment", "real", "generated"], rows)


def _agreement_table(study: MomentStudy) -> str:
    rows = [
        [first, *("" if j < i else f"{study.agreement[i][j]:.3f}" for j in range(len(NAMES)))]
        for i, first in enumerate(NAMES)
    ]
    return _table(["", *NAMES], rows)


def _information_table(study: MomentStudy) -> str:
    rows = [
        ["mutual information, nats", *(f"{value:.4f}" for value in study.information)],
        ["the same in the paper", *(f"{value:.4f}" for value in PAPER_INFORMATION)],
        ["neighbours", *(f"{value:.2f}" for value in study.neighbours)],
        ["the same in the paper", *(f"{value:.2f}" for value in PAPER_NEIGHBOURS)],
    ]
    return _table(["", *NAMES], rows)


def _outside(study: MomentStudy) -> str:
    if study.outside is None:
        return f"<p>{len(study.real)} real images are too few to tell which generated images lie outside.</p>"
    return (
        f"<p>{study.outside:.1%} of the generated images are farther from the real ones, in all five moments together, "
        f"than {QUANTILE:.0%} of real images are from each other. Of fresh real images it would be about "
        f"{1 - QUANTILE:.0%}.</p>"
    )


def _beyond(study: MomentStudy) -> str:
    """Say what the scatter plots do not show."""
    ours, theirs = beyond_axes(study.real, study.generated)
    return f"Beyond the axes lie {ours:,} real and {theirs:,} generated images." if ours or theirs else ""


# Folders --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """Moments of the images of a folder, and what was done to get them.

    Attributes:
        moments: (N, 5) float64.
        said: How many images, of which container, on which scale.
        share: Share of the range of values that the images use, see ``share_used``.
        files: What tells whether the images also lie elsewhere.
        warnings: What the user has to know, without names of files.
    """

    moments: Tensor
    said: str
    share: float
    files: FileSet
    warnings: tuple[str, ...]


class _Image(NamedTuple):
    """What is kept of an image: its moments (1, 5), the scale that they are on, and the ends of its values."""

    moments: Tensor
    scale: str
    ends: np.ndarray


def read_folder(
    root: Path,
    value_range: tuple[float, float] | None = None,
    view: str | None = None,
    generated: bool = False,
) -> Folder:
    """Read all PNG and DICOM files below a folder, in threads; images may differ in size.

    Args:
        root: The folder.
        value_range: Values that are black and white: stored ones of PNG files, of DICOM files those that rescaling
            leads to (CT: HU); None = what PNG files say (``range_of``), and DICOM as a viewer shows them.
        view: Only images of this view, by DICOM tag or file name; None = all.
        generated: Whether the images are generated: of real ones the copies of files are left out, and those of which
            the view is not known.

    Raises:
        DataError: If there is no such image, or some cannot be used.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    paths = find_files(root, DICOM | {".png"})
    which, setting = ("generated", "--generated-value-range") if generated else ("real", "--value-range")
    contents = dict(zip(paths, content_hashes(paths, image_cache() / "hashes" / "folders.json"), strict=True))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        if view is not None:
            wanted = {view, None} if generated else {view}
            views = list(pool.map(view_of, paths))
            paths = [path for path, found in zip(paths, views, strict=True) if found in wanted]
        if not paths:
            of_view = "" if view is None else f" whose tags or name (as in 0_L-{view}.png) say {view}"
            raise DataError(f"{root}: holds no PNG or DICOM file{of_view}")
        copies, count = copies_among(paths, [contents[path] for path in paths]), len(paths)
        if not generated:
            paths = [path for i, path in enumerate(paths) if i not in copies]
        results = pool.map(partial(_read_or_error, value_range=value_range, setting=setting), paths)
        found = list(tqdm(results, root.name, len(paths), unit="image", disable=None))
    errors = [result for result in found if isinstance(result, UnreadableImageError)]
    if errors:
        raise DataError(
            f"{root}: {len(errors)} of {len(paths)} images cannot be used, e.g. {errors[0]}; repair or remove them"
        )
    images = [result for result in found if not isinstance(result, UnreadableImageError)]
    kinds = Counter(image.scale for image in images)
    said = "; ".join(f"{number:,} {scale}" for scale, number in sorted(kinds.items()))
    return Folder(
        torch.cat([image.moments for image in images]),
        said if view is None else f"{said}; view {view}",
        share_used(image.ends for image in images),
        FileSet(str(root), root, [path.name for path in paths], [contents[path] for path in paths]),
        said_of_copies(which, len(copies), count),
    )


def warnings_of(real: Folder, generated: Folder) -> list[str]:
    """Return what the user has to know of two folders before any number is taken.

    Raises:
        DataError: If one lies in the other, or they share files.
    """
    shared = overlap(generated.files, real.files)
    if shared:
        raise DataError(shared[0])
    shares = unlike_shares(real.share, generated.share, "--value-range", "--generated-value-range")
    return [*real.warnings, *generated.warnings, *([shares] if shares else [])]


def _read_or_error(path: Path, value_range: tuple[float, float] | None, setting: str) -> _Image | UnreadableImageError:
    """Return what is kept of an image, or why it cannot be used."""
    try:
        if path.suffix.lower() in DICOM:
            shown = 2.0 * torch.from_numpy(read_dicom(path, value_range=value_range)).double()[None, None] - 1.0
            what = f"values {value_range[0]:g} to {value_range[1]:g}" if value_range else "as displayed, black to white"
            return _Image(moments(shown), f"DICOM {what}", ends_of(shown.numpy()))
        values, bits = read_grey(path), 16 if is_deep(path) else 8
        low, high = range_of(path, values, value_range, setting)
        stored = values.astype(np.uint16 if bits == 16 else np.uint8)
        if not np.array_equal(stored, values):
            raise UnreadableImageError(f"{path.name}: holds values that are no whole numbers of {bits} bits")
        scale = f"PNG of {bits} bits, values {low:g} to {high:g}"
        return _Image(moments_of_levels(stored, (low, high)), scale, 2.0 * (ends_of(values) - low) / (high - low) - 1.0)
    except UnreadableImageError as error:
        return error
    except ValueError as error:
        return UnreadableImageError(f"{path.name}: {error}")


def main(arguments: list[str] | None = None) -> int:
    """Compare two folders; returns 0, or 1 after saying what is wrong with them."""
    parser = argparse.ArgumentParser(prog="python -m experiments.measuring.moments", description=__doc__)
    parser.add_argument("real", type=Path, metavar="REAL", help="folder of real images, PNG or DICOM, searched below")
    parser.add_argument("generated", type=Path, metavar="GENERATED", help="folder of generated images, in the same way")
    parser.add_argument(
        "--view",
        choices=("CC", "MLO"),
        help="only mammograms of this view, by DICOM tag or file name; generated ones that do not say it are kept",
    )
    for which in ("", "generated-"):
        parser.add_argument(
            f"--{which}value-range",
            type=float,
            nargs=2,
            metavar=("LOW", "HIGH"),
            help="values that are black and white in the files of "
            + ("GENERATED" if which else "REAL")
            + ", e.g. 0 4095; of DICOM files in the unit of their rescaling (default: 0 255 for PNG files of 8 bits, "
            "what Mirage's files of 16 bits say, and DICOM as displayed)",
        )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/moments"), help="folder of report.html and tables.csv"
    )
    parser.add_argument("--seed", type=int, default=0, help="chooses the images drawn and those left out at random")
    options = parser.parse_args(arguments)
    roots = options.real.resolve(), options.generated.resolve()
    ranges = _range(options.value_range), _range(options.generated_value_range)
    try:
        real = read_folder(roots[0], ranges[0], options.view)
        generated = read_folder(roots[1], ranges[1], options.view, generated=True)
        warnings = warnings_of(real, generated)
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        study = analyse(real.moments, generated.moments, options.seed)
        effect = _effect_on_agreement(study)
    except (DataError, TooFewImagesError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    parts = [
        f"<!doctype html><meta charset=utf-8><title>Moments</title><style>{STYLE}</style>",
        f"<h1>Moments of {html.escape(roots[1].name)} against {html.escape(roots[0].name)}</h1>",
        f"<p>Real: {html.escape(real.said)}. Generated: {html.escape(generated.said)}.</p>",
        *(f"<p>Warning: {html.escape(warning)}</p>" for warning in warnings),
        *sections(study),
        pruning_section(effect) if effect else "",
    ]
    options.output.mkdir(parents=True, exist_ok=True)
    write_text(options.output / "report.html", "\n".join(parts))
    write_text(options.output / "tables.csv", tables_csv(study, effect))
    print(f"real: {real.said}\ngenerated: {generated.said}")
    print(f"agreement of single moments {_span(study.agreement[i][i] for i in range(5))} (1 = the same)")
    print(f"neighbours {_span(study.neighbours)} (6 = the same), contours covered {_span(study.coverage.values())}")
    print(f"wrote {options.output / 'report.html'} and {options.output / 'tables.csv'}")
    return 0


def _range(given: list[float] | None) -> tuple[float, float] | None:
    return None if given is None else (given[0], given[1])


def _span(values: Iterable[float]) -> str:
    found = list(values)
    return f"{min(found):.2f} to {max(found):.2f}"


def _effect_on_agreement(study: MomentStudy) -> PruningEffect | None:
    """Return what pruning does to the moments' own scores, None if the images are too few for it."""
    score = MomentAgreement()
    try:
        return pruning_effect(
            study.real, study.generated, lambda kept: score.measure(study.real, study.generated[kept]), study.seed
        )
    except TooFewImagesError:
        return None


if __name__ == "__main__":
    sys.exit(main())
