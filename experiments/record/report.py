"""The final report of a run: one HTML file that opens without network, and its scores as CSV."""

from pathlib import Path
from typing import Any

from experiments.pages.elements import Html, escaped, folded, heading, joined, page, paragraph, verbatim
from experiments.pages.pictures import captioned, inline_image, plot, side_by_side
from experiments.pages.tables import table
from experiments.pages.text import csv_text, is_number, text_of
from experiments.record.run_directory import read_status, write_text
from experiments.record.strangers import HealthFile, parsed
from experiments.record.tracking import read_rows

# What the columns of a translator's grids are: of real images, and of what it makes.
_TRANSLATED = (
    "Source and target in each row",
    "Source, translation and, of pairs, target and difference (grey = none, lighter = the translation is) in each row",
)

_BESIDE = ("code_version", "data_fingerprint", "sources")  # long, the same in every row, and in scores.csv


def write_report(directory: Path) -> Path:
    """Write ``report.html`` and ``scores.csv`` from what lies in a run directory, and return the report's path."""
    metrics, scores = read_rows(directory / "metrics.jsonl"), _scores(directory)
    write_text(directory / "scores.csv", scores_csv(scores))
    losses = sorted({key for row in metrics for key in row if key.startswith("loss/")})
    said, limits = _health(directory / "health.json")
    status = read_status(directory)
    parts = [
        paragraph(_state(status), kind="faint"),
        said,
        _samples(directory),
        heading("Scores and losses"),
        side_by_side(*([_score_plot(comparable(scores))] if scores else []), plot(metrics, losses, "loss")),
        *_history(directory),
        folded("All scores", _score_table(scores)),
        folded("Limits of the health verdicts", *limits) if limits else "",
        folded("Configuration", verbatim((directory / "config.yaml").read_text())),
        folded("Versions", verbatim((directory / "versions.json").read_text(errors="replace"))),
    ]
    path = directory / "report.html"
    write_text(path, page(f"{directory.parent.name} / {directory.name}", *parts))
    return path


def _state(status: dict[str, Any]) -> str:
    clock = status.get("images_seen")
    return f"State: {status.get('state')}, images seen: {f'{clock:,}' if is_number(clock) else 'unknown'}"


def scores_csv(scores: list[dict[str, Any]]) -> str:
    """Return scores as CSV; rows may have columns that others lack."""
    names = list(dict.fromkeys(key for row in scores for key in row)) or ["images_seen", "value"]
    return csv_text([names, *([row.get(name) for name in names] for row in scores)])


def score_lines(directory: Path) -> list[str]:
    """Return a table of the run's scores as lines of text, first, best and last."""
    scores = comparable(_scores(directory))
    if not scores:
        return ["no score was taken"]
    grown = [row for row in scores if row.get("generated_at") in (None, row.get("resolution"))] or scores
    best = (max if scores[-1].get("better") == "higher" else min)(grown, key=lambda row: row["value"])
    what = "extractor, generated / real images" if is_frechet(scores[-1]) else ""
    lines = [f"{'':<6} {'images seen':>12} {metric_of(scores[-1]):>17}  {what}".rstrip()]
    for name, row in (("first", scores[0]), ("best", best), ("last", scores[-1])):
        extractor, generated, real, split = (
            text_of(row.get(key)) for key in ("extractor", "generated", "real", "split")
        )
        what = f"{extractor}, {generated} / {real} ({split})" if is_frechet(row) else ""
        lines.append(f"{name:<6} {row['images_seen']:>12} {row['value']:>17.4g}  {what}".rstrip())
    return lines


def _scores(directory: Path) -> list[dict[str, Any]]:
    """Return the scores of a run that are numbers."""
    return [row for row in read_rows(directory / "scores.jsonl") if is_number(row.get("value"))]


def metric_of(row: dict[str, Any]) -> str:
    """Return what a score measures, for people."""
    return "Frechet distance" if is_frechet(row) else text_of(row["metric"]).replace("_", " ")


def is_frechet(row: dict[str, Any]) -> bool:
    """Tell whether a score is a Frechet distance, as all were before rows named their metric."""
    return row.get("metric", "frechet_distance") == "frechet_distance"


def comparable(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the scores that were taken in the same way as the newest one."""

    def way(row: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in row.items() if key not in ("images_seen", "generated_at", "value")}

    return [row for row in scores if way(row) == way(scores[-1])]


# Pictures -------------------------------------------------------------------------------------------------------------


def newest_samples(directory: Path) -> Path | None:
    """Return the newest sample grid of a run."""
    return max((directory / "samples").glob("images_*.png"), default=None)


def _grids(directory: Path) -> list[Path]:
    grids = (directory / "samples").glob("images_*.png")
    return sorted(path for path in grids if path.stem.removeprefix("images_").isdecimal())


def _samples(directory: Path) -> Html:
    """Return the newest samples beside real images."""
    grids = _grids(directory)
    if not grids:
        return paragraph("No samples were written.")
    translates = "callbacks.translation_grid.TranslationGrid" in (directory / "config.yaml").read_text()
    real, made = _TRANSLATED if translates else ("Real images", "Generated")
    figures = [(f"{made}, {_clock(grids[-1]):,} images seen", grids[-1]), (real, directory / "samples" / "real.png")]
    return side_by_side(*(_figure(path, caption) for caption, path in figures if path.exists()))


def _history(directory: Path) -> list[Html]:
    """Return earlier samples, and generated images beside their nearest training images, folded away."""
    earlier = _grids(directory)[:-1]
    middle = earlier[:: max(1, (len(earlier) + 1) // 4)]
    nearest = sorted((directory / "samples").glob("nearest_*.png"))[-1:]
    parts = []
    if middle:
        figures = (_figure(path, f"{_clock(path):,} images seen") for path in middle)
        parts.append(folded("How the samples came about", side_by_side(*figures)))
    if nearest:
        caption = "Generated images, each followed by its nearest training image"
        parts.append(folded("Nearest training images", side_by_side(_figure(nearest[0], caption))))
    return parts


def _clock(grid: Path) -> int:
    return int(grid.stem.removeprefix("images_"))


def _figure(path: Path, caption: str) -> Html:
    return captioned(inline_image(path.read_bytes(), caption), caption)


# Health and scores ----------------------------------------------------------------------------------------------------


def _health(path: Path) -> tuple[Html, list[Html]]:
    """Return what the health watch said last as a sentence, and the limits that it went by."""
    if not path.is_file():
        return paragraph("Nobody watched the run's health.", kind="plain"), []
    health = parsed(HealthFile, path.read_bytes())
    if health is None:
        return paragraph("health.json cannot be read.", kind="plain"), []
    kind = {"healthy": "good", "too early to say": "plain"}.get(health.verdict, "bad")
    said = f"Health: {health.verdict} since {health.since_images_seen:,} images seen."
    said += f" {health.sentence[:1].upper()}{health.sentence[1:]}."
    said += f" To do: {health.advice}." if health.advice else ""
    said += f" A remark: {health.score_remark}." if health.score_remark else ""
    rows = [
        (
            limit.verdict,
            limit.signal.replace("_", " "),
            text_of(health.signals.get(limit.signal, "not measured")),
            f"{limit.side} {limit.value:g}",
            limit.reason,
        )
        for limit in health.limits
    ]
    note = f"A verdict needs all its signals ill in {health.measurements_in_a_row} measurements in a row."
    limits = [table(("verdict", "signal", "measured", "ill if", "why"), rows, "words"), paragraph(note)]
    return paragraph(said, kind=kind), limits


def _score_plot(scores: list[dict[str, Any]]) -> Html:
    scale = "log" if is_frechet(scores[-1]) else "linear"  # it falls by orders of magnitude
    unit = f" ({text_of(scores[-1]['unit'])})" if "unit" in scores[-1] else ""
    return plot(scores, ["value"], metric_of(scores[-1]) + unit, scale)


def _score_table(scores: list[dict[str, Any]]) -> Html:
    if not scores:
        return paragraph("No score was taken.")
    keys = ["images_seen", "value", "extractor", "generated", "real", "split", "resolution", "generator"]
    if not all(map(is_frechet, scores)):
        keys = [key for key in dict.fromkeys(key for row in scores for key in row) if key not in _BESIDE]
    head = [text_of(key).replace("_", " ") for key in keys]
    remark = "Frechet distances of different extractors cannot be compared." if any(map(is_frechet, scores)) else ""
    return joined([table(head, ([text_of(row.get(key)) for key in keys] for row in scores)), escaped(remark)])
