"""The report of an evaluation: one HTML file that opens without network."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from datamodules.files.pseudonyms import Pseudonyms
from experiments.measuring.image_sets import ImageSet
from experiments.measuring.moment_analysis import MomentStudy, PruningEffect
from experiments.measuring.moments_page import pruning_section, sections
from experiments.measuring.rows import Row, in_half_widths, is_bad
from experiments.measuring.scoring import Sets
from experiments.measuring.vectors import VectorCache
from experiments.pages.elements import (
    REAL_IMAGES,
    Html,
    element,
    folded,
    heading,
    joined,
    listed,
    page,
    paragraph,
    verbatim,
)
from experiments.pages.pictures import captioned, inline_figure, picture, side_by_side
from experiments.pages.tables import Cell, table
from experiments.pages.text import text_of
from experiments.record.run_directory import write_text
from lightning_modules.metrics.distances import nearest
from lightning_modules.metrics.memorisation import Copies, Copy, threshold_rank
from lightning_modules.metrics.pixels import Pixels

PAIRS, SAMPLES, LISTED = 6, 24, 20  # pairs and images that are shown, copies that are listed
TICKS = (-1000, -100, -10, -5, -2, -1, 0, 1, 2, 5, 10, 100, 1000)
FAR = 1000.0  # half-widths of the floor that the figure reaches to
MEANING = {
    "lower": "lower is better",
    "higher": "higher is better",
    "as real": "the nearer to the floor, the better",
}
COMPARABLE = "Two scores can be compared if their fingerprints are equal."
HOW_TO_READ = (
    "The interval is the 95 % interval over random halves of the groups (patients, where they are known) and of the "
    "generated images. The floor is what real images get in place of generated ones: one half of the patients against "
    "the other, 95 % of the random splits. It is compared with the generated images at the same size, half of the "
    "images, since most scores depend on the number of images. A score counts as outside its floor where it lies "
    "beyond the ends and its own interval there leaves out the middle: floors of few images are too narrow. Better "
    "than the floor is no praise: images that repeat the real ones are nearer to them than other patients are."
)


@dataclass(frozen=True)
class Gallery:
    """Where the pictures of a report come from.

    Attributes:
        sets: The images.
        vectors: Their vectors.
        pseudonyms: What is shown in place of names.
        score: The suite's score of near copies; None = it has none.
        copies: What it counts, the nearest first; None = not looked for.
    """

    sets: Sets
    vectors: VectorCache
    pseudonyms: Pseudonyms
    score: Copies | None
    copies: list[Copy] | None


def write_page(
    path: Path,
    said: dict[str, Any],
    rows: list[Row],
    gallery: Gallery,
    moments: Sequence[Html],
) -> None:
    """Write the report.

    Args:
        path: The file.
        said: What was evaluated, from ``scores.json``.
        rows: The scores.
        gallery: Where pictures come from.
        moments: The sections on moments, from ``moment_sections``.
    """
    parts = [
        paragraph(_sentence(said)),
        *(paragraph(warning, kind="note") for warning in said["warnings"]),
        REAL_IMAGES,
        _in_short(rows),
        *_privacy(said),
        _samples(gallery.sets),
        heading("Scores"),
        _floor_figure(rows),
        _score_table(rows),
        folded("How to read this", paragraph(HOW_TO_READ)),
        *_slices(said.get("slices")),
        heading(f"Nearest {_kind(gallery.sets)} images"),
        _neighbours(gallery),
        *moments,
        heading("How it was measured"),
        folded("Fingerprint", paragraph(COMPARABLE), verbatim(json.dumps(said, indent=1))),
        folded(
            "Fingerprint of every score",
            verbatim(json.dumps({row["name"]: row["fingerprint"] for row in rows}, indent=1)),
        ),
    ]
    write_text(path, page(f"Evaluation of {said['what']}", *parts))
    path.chmod(0o600)


def _in_short(rows: list[Row]) -> Html:
    """Count the scores that lie beside their floor, in a sentence."""
    judged = [row for row in rows if "verdict" in row]
    if not judged:
        return paragraph("No score has a floor: that needs images of at least 8 patients.", kind="plain")
    bad = sum(map(is_bad, judged))
    said = f"{bad} of {len(judged)} scores that have a floor lie where no score of real images does, on the bad side."
    return paragraph(said, kind="bad" if bad else "good")


def _privacy(said: dict[str, Any]) -> list[Html]:
    if "privacy" not in said:
        return []
    words = {"clean": "good", "leak": "bad", "no answer": ""}
    rows = (
        (one["test"], Cell(one["answer"], words[one["answer"]]), one["sentence"], one["limits"])
        for one in said["privacy"]
    )
    head = ("test", "answer", "what was found", "what it cannot show")
    note = (
        "Of generators that leak nothing at most 5 % get an alarm in any of these tests (Holm), as far as real images "
        "of new patients can stand for them. Clean is no proof: a leak that the test can see was not seen."
    )
    return [heading("Privacy"), table(head, rows, "words last"), paragraph(note)]


def _sentence(said: dict[str, Any]) -> str:
    generated, real = said["generated"]["images"], said["real"]["images"]
    text = f"{generated:,} generated images against {real:,} real ones of {said['real']['groups']:,} groups "
    text += f"({said['against']}), {said['resolution'][0]}x{said['resolution'][1]} pixels, suite {said['suite']}."
    for which in ("generated", "real"):
        sizes = said[which].get("own_sizes", {})
        if sizes and list(sizes) != ["x".join(map(str, said["resolution"]))]:
            listed = ", ".join(f"{size} ({count:,})" for size, count in sizes.items())
            text += f" The files of the {which} images have other sizes: {listed}."
    if said["generated_at"] and said["generated_at"] != said["resolution"]:
        at = "x".join(map(str, said["generated_at"]))
        text += f" The generator is still at {at}: its images were enlarged by repeating pixels."
    return text


def _slices(lines: list[str] | None) -> list[Html]:
    if lines is None:
        return []
    link = paragraph(element("a", "Every score in every slice", href="slices.html"))
    return [heading("Slices"), listed(map(text_of, lines)), link]


def _score_table(rows: list[Row]) -> Html:
    head = ("score", "value", "95 % interval", "at half size", "floor at half size", "verdict", "")
    return table(head, map(_score_row, rows), "last")


def _score_row(row: Row) -> list[str | Cell]:
    name = row["name"].replace("_", " ")
    if row["value"] is None:
        return [name, Cell(f"not measured: {row['refused']}", columns=6)]
    cells: list[str | Cell] = [name, text_of(row["value"]), "-", "-", "-", "-"]
    if "low" in row:
        word = "bad" if is_bad(row) else "good" if row["verdict"] == "within the floor" else ""
        cells[2] = f"{row['low']:.4g} to {row['high']:.4g}"
        cells[3] = text_of(row["at_floor_size"])
        cells[4] = f"{row['floor_low']:.4g} to {row['floor_high']:.4g}"
        cells[5] = Cell(text_of(row["verdict"]), word)
    return [*cells, "; ".join([MEANING[row["better"]], *map(str, row["warnings"])])]


def _floor_figure(rows: list[Row]) -> Html:
    """Return where each score lies beside its floor: scores of different units on one axis."""
    shown = [row for row in rows if "low" in row]
    if not shown:
        return Html()
    figure = Figure(figsize=(9, 1.0 + 0.27 * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(-1, 1, color="#d5ead8", label="floor: real against real")
    for place, row in enumerate(reversed(shown)):
        ends = [in_half_widths(row, float(end)) for end in np.quantile(row["replicates"], (0.025, 0.975))]
        value = in_half_widths(row, row["at_floor_size"])
        colour = "#a50f15" if is_bad(row) else "#1a6e2e" if row["verdict"] == "within the floor" else "#08519c"
        axes.plot(np.clip(ends, -FAR, FAR), [place, place], color=colour, linewidth=1.5)
        axes.plot(np.clip([value], -FAR, FAR), [place], ">" if value > FAR else "o", color=colour, markersize=5)
    axes.set_yticks(range(len(shown)), [row["name"].replace("_", " ") for row in reversed(shown)])
    axes.set_xscale("symlog", linthresh=2.0, linscale=1.0)
    ticks = [tick for tick in TICKS if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("distance from the middle of the floor, in half-widths of the floor; right is worse")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize="small", frameon=False)
    return inline_figure(figure)


def _samples(sets: Sets) -> Html:
    shown = ("Generated images", sets.generated), ("Real images", sets.real)
    return side_by_side(
        *(
            captioned(picture(images.read(0, min(SAMPLES, len(images))), 6), f"{caption}, not selected")
            for caption, images in shown
        )
    )


def _kind(sets: Sets) -> str:
    return "real" if sets.train is None else "training"


def _neighbours(gallery: Gallery) -> Html:
    """Return the generated images that are nearest to training images in pixels, and some others, in pairs.

    Where it is not known which images the generator was trained on, they are the real ones, and nothing is concluded.
    """
    sets, pixels = gallery.sets, Pixels()
    pool = sets.train or sets.real
    generated, train = gallery.vectors.vectors(sets.generated, pixels), gallery.vectors.vectors(pool, pixels)
    distances, which = nearest(generated, train)
    closest = distances.argsort()[:PAIRS].tolist()
    pairs = [
        _pairs(gallery, pool, chosen, which, distances, caption)
        for chosen, caption in (
            (closest, "The nearest pairs of all"),
            (list(range(min(PAIRS, len(generated)))), "The first generated images, not selected"),
        )
    ]
    parts = [side_by_side(*pairs)]
    if sets.held_out is not None:
        usual, _ = nearest(gallery.vectors.vectors(sets.held_out, pixels), train)
        said = (
            f"Held-out real images are {float(usual.median()):.4f} from their nearest training image (median; the "
            f"nearest {float(usual.min()):.4f}), generated ones {float(distances.median()):.4f} (the nearest "
            f"{float(distances.min()):.4f}). Distances are root mean square differences of pixels in [-1, 1], images "
            "shrunk to 32 pixels."
        )
        parts.append(paragraph(said))
    return joined([*parts, _copies(gallery, pool)])


def _copies(gallery: Gallery, pool: ImageSet) -> Html:
    held_out = gallery.sets.held_out
    if gallery.score is None:
        return paragraph("Near copies were not looked for: the suite leaves their score out.")
    if gallery.copies is None or held_out is None:
        return paragraph("Near copies were not looked for: that needs the training images, and held-out ones.")
    count, rank = len(gallery.sets.generated), threshold_rank(len(held_out), gallery.score.false_alarms)
    others = f"all but {rank - 1}" if rank > 1 else "all"
    said = paragraph(
        f"Near copies: {len(gallery.copies)} of {count} generated images are nearer to a training image, in pixels, "
        f"than {others} of {len(held_out)} held-out real images are. By chance it would be about "
        f"{rank / (len(held_out) + 1) * count:.1f}."
    )
    rows = [
        (
            text_of(gallery.sets.generated.names[copy.generated]),
            gallery.pseudonyms.of(pool.names[copy.train]),
            f"{copy.distance:.4f}",
        )
        for copy in gallery.copies[:LISTED]
    ]
    return joined([said, table(("generated image", "training image", "distance"), rows)]) if rows else said


def _pairs(gallery: Gallery, pool: ImageSet, chosen: list[int], which: Tensor, distances: Tensor, caption: str) -> Html:
    pairs = [
        torch.cat([gallery.sets.generated.read(i, i + 1), pool.read(int(which[i]), int(which[i]) + 1)]) for i in chosen
    ]
    far = ", ".join(f"{float(distances[i]):.3f}" for i in chosen)
    said = f"{caption}: generated, then its nearest {_kind(gallery.sets)} image. Distances: {far}"
    return captioned(picture(torch.cat(pairs), 2 * min(3, len(pairs))), said)


def moment_sections(study: MomentStudy | None, pruning: PruningEffect | None) -> list[Html]:
    """Return the analysis of moments as sections of the report.

    Args:
        study: The analysis; None = it could not be made.
        pruning: What leaving out outliers does to the scores; None = there are none.
    """
    if study is None:
        said = "Not analysed: there are too few images, or all are alike."
        return [heading("Moments of the pixel values"), paragraph(said)]
    return [*sections(study), *([pruning_section(pruning)] if pruning else [])]
