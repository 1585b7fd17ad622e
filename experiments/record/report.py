"""The final report of a run: one HTML file that opens without network, and its scores as CSV."""

import base64
import csv
import html
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.record.run_directory import read_status, write_text
from experiments.record.tracking import read_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
img { max-width: 100%; image-rendering: pixelated } figure { margin: 0 } figcaption { color: #555 }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem } .plot img { image-rendering: auto }
table { border-collapse: collapse } td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
.words td, .words th { text-align: left; vertical-align: top }
pre { background: #f5f5f5; padding: 1rem; overflow-x: auto }
"""

# What the columns of a translator's grids are: of real images, and of what it makes.
_TRANSLATED = (
    "Source and target in each row",
    "Source, translation and, of pairs, target and difference (grey = none, lighter = the translation is) in each row",
)

_BESIDE = ("code_version", "data_fingerprint", "sources")  # long, the same in every row, and in scores.csv


def write_report(directory: Path) -> Path:
    """Write ``report.html`` and ``scores.csv`` from what lies in a run directory, and return the report's path."""
    metrics, scores = read_rows(directory / "metrics.jsonl"), _scores(directory)
    _write_csv(directory / "scores.csv", scores)
    title = f"{directory.parent.name} / {directory.name}"
    status = read_status(directory)
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{html.escape(title)}</h1>",
        f"<p>State: {html.escape(str(status.get('state')))}, images seen: "
        f"{html.escape(str(status.get('images_seen', 'unknown')))}</p>",
        _samples(directory),
        _health(directory / "health.json"),
        "<h2>Scores</h2>",
        _score_plot(comparable(scores)),
        _score_table(scores),
        "<h2>Losses</h2>",
        plot(metrics, sorted({key for row in metrics for key in row if key.startswith("loss/")}), "loss"),
        "<h2>Configuration</h2>",
        f"<pre>{html.escape((directory / 'config.yaml').read_text())}</pre>",
        f"<h2>Versions</h2><pre>{html.escape((directory / 'versions.json').read_text(errors='replace'))}</pre>",
    ]
    path = directory / "report.html"
    write_text(path, "\n".join(parts))
    return path


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
    return [row for row in read_rows(directory / "scores.jsonl") if _is_number(row.get("value"))]


def metric_of(row: dict[str, Any]) -> str:
    """Return what a score measures, for people."""
    return "Frechet distance" if is_frechet(row) else text_of(row["metric"]).replace("_", " ")


def is_frechet(row: dict[str, Any]) -> bool:
    """Tell whether a score is a Frechet distance, as all were before rows named their metric."""
    return row.get("metric", "frechet_distance") == "frechet_distance"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # false for NaN


def comparable(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the scores that were taken in the same way as the newest one."""

    def way(row: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in row.items() if key not in ("images_seen", "generated_at", "value")}

    return [row for row in scores if way(row) == way(scores[-1])]


def newest_samples(directory: Path) -> Path | None:
    """Return the newest sample grid of a run."""
    return max((directory / "samples").glob("images_*.png"), default=None)


def _samples(directory: Path) -> str:
    folder = directory / "samples"
    grids = sorted(path for path in folder.glob("images_*.png") if path.stem.removeprefix("images_").isdecimal())
    if not grids:
        return "<p>No samples were written.</p>"
    translates = "callbacks.translation_grid.TranslationGrid" in (directory / "config.yaml").read_text()
    real, made = _TRANSLATED if translates else ("Real images", "Generated")
    figures = [(real, folder / "real.png"), (f"{made}, {_clock(grids[-1])} images seen", grids[-1])]
    figures += [
        ("Generated images, each followed by its nearest training image", path)
        for path in sorted(folder.glob("nearest_*.png"))[-1:]
    ]
    pair = "".join(_figure(path, caption) for caption, path in figures if path.exists())
    middle = grids[:-1][:: max(1, len(grids) // 4)]
    history = "".join(_figure(path, f"{_clock(path)} images seen") for path in middle)
    return f"<h2>Samples</h2><div class=pair>{pair}</div><h2>History</h2><div class=pair>{history}</div>"


def _clock(grid: Path) -> int:
    return int(grid.stem.removeprefix("images_"))


def _figure(path: Path, caption: str) -> str:
    return f"<figure>{inline_image(path.read_bytes())}<figcaption>{html.escape(caption)}</figcaption></figure>"


def inline_image(png: bytes) -> str:
    """Return a PNG as an HTML element that needs no file."""
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _health(path: Path) -> str:
    """Return what the health watch said last, and the limits that it went by."""
    try:
        return _health_section(json.loads(path.read_text()))
    except OSError:
        return "<h2>Health</h2><p>Nobody watched.</p>"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "<h2>Health</h2><p>health.json cannot be read.</p>"


def _health_section(health: dict[str, Any]) -> str:
    said = f"{health['sentence']}. Verdict: {health['verdict']}, since {health['since_images_seen']} images seen."
    said += f" To do: {health['advice']}." if health["advice"] else ""
    said += f" A remark: {health['score_remark']}." if health.get("score_remark") else ""
    head = "".join(f"<th>{key}" for key in ("verdict", "signal", "measured", "ill if", "why"))
    rows = (
        (
            limit["verdict"],
            limit["signal"].replace("_", " "),
            text_of(health["signals"].get(limit["signal"], "not measured")),
            f"{limit['side']} {limit['value']:g}",
            limit["reason"],
        )
        for limit in health["limits"]
    )
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}" for cell in row) for row in rows)
    note = f"A verdict needs all its signals ill in {health['measurements_in_a_row']} measurements in a row."
    table = f"<table class=words><tr>{head}{body}</table>"
    return f"<h2>Health</h2><p>{html.escape(said)}</p>{table}<p>{html.escape(note)}</p>"


def plot(rows: list[dict[str, Any]], keys: list[str], label: str, scale: str = "linear") -> str:
    """Return a plot of values over the clock as an inline picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots()
    for key in keys:
        points = [(row["images_seen"], row[key]) for row in rows if _is_number(row.get(key))]
        name = _as_text(key.removeprefix("loss/"))
        if points:
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 40 else "", label=name)
    axes.set(xlabel="images seen", ylabel=_as_text(label), yscale=scale)
    axes.grid(alpha=0.3)
    if len(axes.lines) > 1:
        axes.legend()
    return inline_figure(figure)


def _as_text(name: str) -> str:
    """Return a name as matplotlib shows it: a dollar would begin a formula."""
    return name.replace("$", r"\$")


def inline_figure(figure: "Figure") -> str:
    """Return a matplotlib figure as an HTML element that needs no file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f"<div class=plot>{inline_image(buffer.getvalue())}</div>"


def _score_plot(scores: list[dict[str, Any]]) -> str:
    if not scores:
        return ""
    scale = "log" if is_frechet(scores[-1]) else "linear"  # it falls by orders of magnitude
    unit = f" ({text_of(scores[-1]['unit'])})" if "unit" in scores[-1] else ""
    return plot(scores, ["value"], metric_of(scores[-1]) + unit, scale)


def _score_table(scores: list[dict[str, Any]]) -> str:
    if not scores:
        return "<p>No score was taken.</p>"
    keys = ["images_seen", "value", "extractor", "generated", "real", "split", "resolution", "generator"]
    if not all(map(is_frechet, scores)):
        keys = [key for key in dict.fromkeys(key for row in scores for key in row) if key not in _BESIDE]
    head = "".join(f"<th>{html.escape(text_of(key)).replace('_', ' ')}" for key in keys)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text_of(row.get(key)))}" for key in keys) for row in scores)
    remark = "Frechet distances of different extractors cannot be compared." if any(map(is_frechet, scores)) else ""
    return f"<table><tr>{head}{body}</table><p>{remark}</p>"


def text_of(value: Any) -> str:
    """Return a value as short, printable text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "x".join(map(str, value)) if isinstance(value, list) else str(value)
    return "".join(character if character.isprintable() else " " for character in text)  # a terminal obeys some others


def csv_cell(value: Any) -> str:
    """Return a text that spreadsheets do not take for a formula, or a number, written out or not, as it is."""
    if _is_number(value):
        return str(value)
    text = text_of(value)
    if not text.startswith(("=", "+", "-", "@")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def _write_csv(path: Path, scores: list[dict[str, Any]]) -> None:
    buffer = io.StringIO()
    names = list(dict.fromkeys(key for row in scores for key in row)) or ["images_seen", "value"]
    writer = csv.writer(buffer)
    writer.writerow(map(csv_cell, names))
    writer.writerows([csv_cell(row.get(name, "")) for name in names] for row in scores)
    write_text(path, buffer.getvalue())
