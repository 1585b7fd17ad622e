"""Two or more evaluations side by side, with the significance of each difference."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from datamodules.records.duplicates import some
from experiments.configuration.errors import ConfigError
from experiments.measuring.resampling import interval
from experiments.measuring.rows import Row, check_row
from experiments.pages.elements import listed, page, paragraph
from experiments.pages.tables import table as html_table
from experiments.pages.text import csv_text, text_of
from experiments.record.run_directory import write_text

SIGNIFICANT = 0.05
SHORT = 60  # characters of two values that are shown where evaluations differ


@dataclass(frozen=True)
class Evaluation:
    """The scores of one evaluation.

    Attributes:
        name: What the columns are headed with.
        rows: Its scores by name.
    """

    name: str
    rows: dict[str, Row]


@dataclass(frozen=True)
class Difference:
    """How the score of an evaluation differs from the first one's.

    Attributes:
        value: Score minus the first evaluation's.
        low: Lower end of the 95 % interval; None = the scores were not taken on the same halves of the same real
            images, or all halves agree.
        high: Upper end.
        p: Two-sided probability of such a difference if there were none, corrected for the number of comparisons.
        better: Whether it points to the better side; None = there is none ("as real").
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    better: bool | None

    @property
    def significant(self) -> bool:
        """Whether the difference is more than chance."""
        return self.p is not None and self.p < SIGNIFICANT


def read_evaluation(path: Path) -> Evaluation:
    """Read ``scores.json``.

    Args:
        path: The file, the folder that holds it, or a run directory, whose newest evaluation is taken.

    Raises:
        ConfigError: If there is none, or it is damaged.
    """
    candidates = [path, path / "scores.json", *_newest_first(path / "evaluation")]
    file = next((one for one in candidates if one.is_file()), None)
    if file is None:
        raise ConfigError([f"{path}: holds no scores.json; run python -m experiments.evaluate first"])
    try:
        rows = {str(row["name"]): row for row in json.loads(file.read_text())["scores"]}
        for row in rows.values():
            check_row(row)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError([f"{file}: is no evaluation of Mirage's ({type(error).__name__}: {error})"]) from error
    folder = file.resolve().parent
    run = folder.parent.parent
    name = f"{run.parent.name}/{run.name}" if folder.parent.name == "evaluation" else folder.name
    return Evaluation(name, rows)


def problems_of_fingerprints(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return a sentence for each evaluation whose scores were not taken in the same way as the first one's."""
    first, problems = evaluations[0], []
    for other in evaluations[1:]:
        differing: dict[str, list[str]] = {}
        for name in sorted(first.rows.keys() & other.rows.keys()):
            a, b = first.rows[name]["fingerprint"], other.rows[name]["fingerprint"]
            for key in sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key)):
                differing.setdefault(f"{key}{_briefly(a.get(key), b.get(key))}", []).append(name)
        if differing:
            shared = len(first.rows.keys() & other.rows.keys())
            what = "; ".join(
                what if len(names) == shared else f"{what} of {some(names)}" for what, names in differing.items()
            )
            problems.append(text_of(f"{other.name} against {first.name} differs in {what}"))
    return problems


def _briefly(a: Any, b: Any) -> str:
    """Return two values that differ, if they are short; of two nodes, what differs in them."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
        return f" ({', '.join(f'{key}{_briefly(a.get(key), b.get(key))}' for key in keys)})"
    texts = [text_of(value) for value in (a, b)]
    return f" ({' and '.join(texts)})" if sum(map(len, texts)) <= SHORT else ""


def compare(evaluations: Sequence[Evaluation]) -> dict[str, list[Difference | None]]:
    """Return, for every score that the first evaluation has, each other one's difference to it.

    Both evaluations resampled the same halves of the real images, so a difference is taken within each replicate and
    the spread of the real images cancels (a paired comparison). The probabilities are Holm's (1979), over all
    differences that are shown.
    """
    found: dict[str, list[Difference | None]] = {}
    for name, row in evaluations[0].rows.items():
        others = [other.rows.get(name) for other in evaluations[1:]]
        if row["value"] is not None:
            found[name] = [_difference(row, other) for other in others]
    return _corrected(found)


def holm(p: Sequence[float]) -> list[float]:
    """Return probabilities corrected for their number (Holm 1979): together they err as often as a single one says."""
    adjusted, highest = [1.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, p[i] * (len(p) - rank)))
        adjusted[i] = highest
    return adjusted


def table(evaluations: Sequence[Evaluation], differences: dict[str, list[Difference | None]]) -> list[list[str]]:
    """Return the comparison as rows of text, the head first."""
    head = ["score", evaluations[0].name]
    for other in evaluations[1:]:
        head += [other.name, "difference", "p"]
    rows = [head]
    for name, of_others in differences.items():
        cells = [name, _value(evaluations[0].rows[name])]
        for other, difference in zip(evaluations[1:], of_others, strict=True):
            cells += [_value(other.rows.get(name)), *_words(difference)]
        rows.append(cells)
    return [[text_of(text) for text in row] for row in rows]  # a terminal obeys some characters


def write_comparison(folder: Path, rows: list[list[str]], problems: Sequence[str]) -> None:
    """Write ``comparison.csv`` and ``comparison.html``, which opens without network."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "comparison.csv", csv_text(rows))
    head, *body = rows
    warning = [paragraph("These scores were NOT taken in the same way:", kind="note"), listed(problems)]
    parts = [*(warning if problems else []), html_table(head, body, "words"), paragraph(NOTE)]
    write_text(folder / "comparison.html", page("Comparison", *parts))


NOTE = (
    "Differences are to the first column, with the 95 % interval of paired halves of the same real images. p is "
    "two-sided and corrected for the number of comparisons (Holm 1979); an asterisk marks p below 0.05. It covers the "
    "images that were drawn, not the randomness of training: for that, evaluate several seeds."
)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/scores.json"), key=lambda path: path.stat().st_mtime, reverse=True)


def _difference(first: Row, other: Row | None) -> Difference | None:
    if other is None or other["value"] is None:
        return None
    value = other["value"] - first["value"]
    better = None if first["better"] == "as real" or value == 0 else (value < 0) == (first["better"] == "lower")
    of_halves = np.subtract(other["replicates"], first["replicates"]) if _paired(first, other) else np.zeros(1)
    spread = float(np.std(of_halves, ddof=1)) if len(of_halves) > 1 else 0.0
    if spread == 0:
        return Difference(value, None, None, None, better)
    p = 2.0 * float(student_t.sf(abs(value) / spread, first["freedom"]))
    return Difference(value, *interval(value, of_halves.tolist(), first["freedom"]), p, better)


def _paired(first: Row, other: Row) -> bool:
    """Tell whether two scores were taken on the same halves of the same real images."""
    both = "replicates" in first and "replicates" in other
    return (
        both and first["fingerprint"] == other["fingerprint"] and len(first["replicates"]) == len(other["replicates"])
    )


def _corrected(found: dict[str, list[Difference | None]]) -> dict[str, list[Difference | None]]:
    """Return the differences with Holm's probabilities."""
    tests = {
        (name, i): d.p for name, ds in found.items() for i, d in enumerate(ds) if d is not None and d.p is not None
    }
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))

    def with_p(difference: Difference | None, name: str, i: int) -> Difference | None:
        if difference is None:
            return None
        d = difference
        return Difference(d.value, d.low, d.high, adjusted.get((name, i)), d.better)

    return {name: [with_p(d, name, i) for i, d in enumerate(ds)] for name, ds in found.items()}


def _value(row: Row | None) -> str:
    if row is None or row["value"] is None:
        return "-"
    return text_of(float(row["value"])) + (f" ({row['low']:.4g} .. {row['high']:.4g})" if "low" in row else "")


def _words(difference: Difference | None) -> tuple[str, str]:
    if difference is None:
        return "-", "-"
    d = difference
    side = {True: " better", False: " worse", None: ""}[d.better]
    if d.p is None:
        return f"{d.value:+.4g}{side}", "-"
    return f"{d.value:+.4g} ({d.low:+.4g} .. {d.high:+.4g}){side}", f"{d.p:.2g}{'*' if d.significant else ''}"
