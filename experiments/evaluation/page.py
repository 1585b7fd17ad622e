"""The report of an evaluation: one HTML file that opens without network."""

import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.sample_grid import enlarged, grid_picture
from datamodules.files.pseudonyms import Pseudonyms
from experiments.measuring.image_sets import ImageSet
from experiments.measuring.moment_analysis import MomentStudy, PruningEffect
from experiments.measuring.moments_page import pruning_section, sections
from experiments.measuring.rows import Row, in_half_widths, is_bad
from experiments.measuring.scoring import Sets
from experiments.measuring.vectors import VectorCache
from experiments.record.report import STYLE, inline_figure, inline_image, text_of
from experiments.record.run_directory import write_text
from lightning_modules.metrics.distances import nearest
from lightning_modules.metrics.memorisation import Copies, Copy, threshold_rank
from lightning_modules.metrics.pixels import Pixels

PAIRS, SAMPLES, LISTED = 6, 24, 20  # pairs and images that are shown, copies that are listed
TICKS = (-1000, -100, -10, -5, -2, -1, 0, 1, 2, 5, 10, 100, 1000)
FAR = 1000.0  # half-widths of the floor that the figure reaches to
OWN_STYLE = """
.outside { color: #a50f15; font-weight: 600 } .within { color: #1a6e2e } .grid img { width: 100% }
.note { background: #fff7e0; border-left: 4px solid #e0a800; padding: .5rem 1rem }
td:first-child, th:first-child, td:last-child { text-align: left } .scroll { overflow-x: auto }
"""
MEANING = {
    "lower": "lower is better",
    "higher": "higher is better",
    "as real": "the nearer to the floor, the better",
}


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
    moments: Sequence[str],
) -> None:
    """Write the report.

    Args:
        path: The file.
        said: What was evaluated, from ``scores.json``.
        rows: The scores.
        gallery: Where pictures come from.
        moments: The sections on moments, from ``moment_sections``.
    """
    title = f"Evaluation of {said['what']}"
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}{OWN_STYLE}</style>",
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(_sentence(said))}</p>",
        *(f"<p class=note>{html.escape(warning)}</p>" for warning in said["warnings"]),
        "<p class=note>This file shows real images beside generated ones. Treat it as patient data.</p>",
        *_privacy(said),
        "<h2>Scores</h2>",
        _floor_figure(rows),
        _score_table(rows),
        _how_to_read(),
        *_slices(said.get("slices")),
        "<h2>Samples</h2>",
        _samples(gallery.sets),
        f"<h2>Nearest {_kind(gallery.sets)} images</h2>",
        _neighbours(gallery),
        *moments,
        "<h2>Fingerprint</h2><p>Two scores can be compared if their fingerprints are equal.</p>",
        f"<pre>{html.escape(json.dumps(said, indent=1))}</pre>",
        "<details><summary>Fingerprint of every score</summary>",
        f"<pre>{html.escape(json.dumps({row['name']: row['fingerprint'] for row in rows}, indent=1))}</pre></details>",
    ]
    write_text(path, "\n".join(parts))
    path.chmod(0o600)


def _privacy(said: dict[str, Any]) -> list[str]:
    if "privacy" not in said:
        return []
    words = {"clean": "within", "leak": "outside", "no answer": ""}
    rows = "".join(
        f"<tr><td>{html.escape(one['test'])}<td class='{words[one['answer']]}'>{one['answer']}"
        f"<td>{html.escape(one['sentence'])}<td>{html.escape(one['limits'])}"
        for one in said["privacy"]
    )
    head = "<tr><th>test<th>answer<th>what was found<th>what it cannot show"
    note = (
        "Of generators that leak nothing at most 5 % get an alarm in any of these tests (Holm), as far as real images "
        "of new patients can stand for them. Clean is no proof: a leak that the test can see was not seen."
    )
    return ["<h2>Privacy</h2>", f"<table class=words>{head}{rows}</table><p>{note}</p>"]


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


def _how_to_read() -> str:
    return (
        "<p>The interval is the 95 % interval over random halves of the groups (patients, where they are known) and of "
        "the generated images. The floor is what real images get in place of generated ones: one half of the patients "
        "against the other, 95 % of the random splits. It is compared with the generated images at the same size, half "
        "of the images, since most scores depend on the number of images. A score counts as outside its floor where it "
        "lies beyond the ends and its own interval there leaves out the middle: floors of few images are too narrow. "
        "Better than the floor is no praise: images that repeat the real ones are nearer to them than other patients "
        "are.</p>"
    )


def _slices(lines: list[str] | None) -> list[str]:
    if lines is None:
        return []
    listed = "".join(f"<li>{html.escape(text_of(line))}" for line in lines)
    return [f"<h2>Slices</h2><ul>{listed}</ul><p><a href=slices.html>Every score in every slice</a></p>"]


def _score_table(rows: list[Row]) -> str:
    head = "".join(
        f"<th>{name}"
        for name in ("score", "value", "95 % interval", "at half size", "floor at half size", "verdict", "")
    )
    body = "".join(_score_row(row) for row in rows)
    return f"<div class=scroll><table><tr>{head}{body}</table></div>"


def _score_row(row: Row) -> str:
    name = html.escape(row["name"].replace("_", " "))
    if row["value"] is None:
        return f"<tr><td>{name}<td colspan=6>not measured: {html.escape(row['refused'])}"
    cells = [text_of(row["value"]), "-", "-", "-", "-"]
    if "low" in row:
        cells[1] = f"{row['low']:.4g} to {row['high']:.4g}"
        cells[2] = text_of(row["at_floor_size"])
        cells[3] = f"{row['floor_low']:.4g} to {row['floor_high']:.4g}"
        cells[4] = text_of(row["verdict"])
    word = "outside" if is_bad(row) else "within" if row.get("verdict") == "within the floor" else ""
    notes = "; ".join([MEANING[row["better"]], *map(str, row["warnings"])])
    shown = "".join(f"<td class='{word if i == 4 else ''}'>{html.escape(cell)}" for i, cell in enumerate(cells))
    return f"<tr><td>{name}{shown}<td>{html.escape(notes)}"


def _floor_figure(rows: list[Row]) -> str:
    """Return where each score lies beside its floor: scores of different units on one axis."""
    shown = [row for row in rows if "low" in row]
    if not shown:
        return ""
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


def _samples(sets: Sets) -> str:
    figures = [("Real images", sets.real), ("Generated images", sets.generated)]
    return (
        "<div class='pair grid'>"
        + "".join(
            f"<figure>{picture(images.read(0, min(SAMPLES, len(images))), 6)}<figcaption>{caption}, not selected"
            "</figcaption></figure>"
            for caption, images in figures
        )
        + "</div>"
    )


def _kind(sets: Sets) -> str:
    return "real" if sets.train is None else "training"


def _neighbours(gallery: Gallery) -> str:
    """Return the generated images that are nearest to training images in pixels, and some others, in pairs.

    Where it is not known which images the generator was trained on, they are the real ones, and nothing is concluded.
    """
    sets, pixels = gallery.sets, Pixels()
    pool = sets.train or sets.real
    generated, train = gallery.vectors.vectors(sets.generated, pixels), gallery.vectors.vectors(pool, pixels)
    distances, which = nearest(generated, train)
    closest = distances.argsort()[:PAIRS].tolist()
    parts = [
        _pairs(gallery, pool, chosen, which, distances, caption)
        for chosen, caption in (
            (closest, "The nearest pairs of all"),
            (list(range(min(PAIRS, len(generated)))), "The first generated images, not selected"),
        )
    ]
    if sets.held_out is not None:
        usual, _ = nearest(gallery.vectors.vectors(sets.held_out, pixels), train)
        parts.append(
            f"<p>Held-out real images are {float(usual.median()):.4f} from their nearest training image (median; the "
            f"nearest {float(usual.min()):.4f}), generated ones {float(distances.median()):.4f} (the nearest "
            f"{float(distances.min()):.4f}). Distances are root mean square differences of pixels in [-1, 1], images "
            "shrunk to 32 pixels.</p>"
        )
    return "".join([*parts, _copies(gallery, pool)])


def _copies(gallery: Gallery, pool: ImageSet) -> str:
    held_out = gallery.sets.held_out
    if gallery.score is None:
        return "<p>Near copies were not looked for: the suite leaves their score out.</p>"
    if gallery.copies is None or held_out is None:
        return "<p>Near copies were not looked for: that needs the training images, and held-out ones.</p>"
    count, rank = len(gallery.sets.generated), threshold_rank(len(held_out), gallery.score.false_alarms)
    others = f"all but {rank - 1}" if rank > 1 else "all"
    said = (
        f"<p>Near copies: {len(gallery.copies)} of {count} generated images are nearer to a training image, in pixels, "
        f"than {others} of {len(held_out)} held-out real images are. By chance it would be about "
        f"{rank / (len(held_out) + 1) * count:.1f}.</p>"
    )
    rows = ""
    for copy in gallery.copies[:LISTED]:
        generated = html.escape(text_of(gallery.sets.generated.names[copy.generated]))
        train = html.escape(gallery.pseudonyms.of(pool.names[copy.train]))
        rows += f"<tr><td>{generated}<td>{train}<td>{copy.distance:.4f}"
    return said + (f"<table><tr><th>generated image<th>training image<th>distance{rows}</table>" if rows else "")


def _pairs(gallery: Gallery, pool: ImageSet, chosen: list[int], which: Tensor, distances: Tensor, caption: str) -> str:
    pairs = [
        torch.cat([gallery.sets.generated.read(i, i + 1), pool.read(int(which[i]), int(which[i]) + 1)]) for i in chosen
    ]
    far = ", ".join(f"{float(distances[i]):.3f}" for i in chosen)
    shown = picture(torch.cat(pairs), 2 * min(3, len(pairs)))
    said = f"{caption}: generated, then its nearest {_kind(gallery.sets)} image. Distances: {far}"
    return f"<figure class=grid>{shown}<figcaption>{said}</figcaption></figure>"


def moment_sections(study: MomentStudy | None, pruning: PruningEffect | None) -> list[str]:
    """Return the analysis of moments as sections of the report.

    Args:
        study: The analysis; None = it could not be made.
        pruning: What leaving out outliers does to the scores; None = there are none.
    """
    if study is None:
        return ["<h2>Moments of the pixel values</h2><p>Not analysed: there are too few images, or all are alike.</p>"]
    return [*sections(study), *([pruning_section(pruning)] if pruning else [])]


def picture(images: Tensor, columns: int) -> str:
    """Return images (N, C, H, W) in [-1, 1] as one picture, an HTML element."""
    grid = grid_picture(enlarged(images), columns)
    grid.thumbnail((1600, 1600))
    buffer = io.BytesIO()
    grid.save(buffer, "PNG")
    return inline_image(buffer.getvalue())
