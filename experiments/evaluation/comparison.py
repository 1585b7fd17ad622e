"""Two or more evaluations side by side, with the significance of each difference."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from experiments.configuration.errors import ConfigError
from experiments.configuration.untrusted import read_object
from experiments.measuring.resampling import interval
from experiments.measuring.rows import Row
from experiments.pages.elements import folded, heading, page, paragraph
from experiments.pages.tables import Cell
from experiments.pages.tables import table as table_of
from experiments.pages.text import csv_text, text_of
from experiments.record.run_directory import write_text
from experiments.record.strangers import EvaluationFile, read_declared

SIGNIFICANT = 0.05
DATA = {"real": "the real images", "train": "the training images", "held_out": "the held-out images"}
NAMED, SHORT = 4, 60  # properties in a sentence, characters of two values there


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
    read_declared(EvaluationFile, file, "evaluation")
    rows = {row["name"]: row for row in read_object(file)["scores"]}
    folder = file.resolve().parent
    run = folder.parent.parent
    name = f"{run.parent.name}/{run.name}" if folder.parent.name == "evaluation" else folder.name
    return Evaluation(name, rows)


def what_differs(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return, for every evaluation that was not made as the first one was, a sentence that says so and what to do."""
    return [sentence for other in evaluations[1:] if (sentence := _sentence(evaluations[0], other))]


def details(evaluations: Sequence[Evaluation]) -> list[tuple[str, str, str, str, str]]:
    """Return score, evaluation, property, its value there and the first evaluation's, of all that differs."""
    first = evaluations[0]
    return [
        (name, other.name, key, text_of(theirs), text_of(ours))
        for other in evaluations[1:]
        for name, key, theirs, ours in _different(first, other)
    ]


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


def write_comparison(folder: Path, rows: list[list[str]], evaluations: Sequence[Evaluation]) -> None:
    """Write ``comparison.csv`` and ``comparison.html``, which opens without network.

    Args:
        folder: Where they are written.
        rows: The comparison, from ``table``.
        evaluations: What was compared.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "comparison.csv", csv_text(rows))
    head, *body = rows
    unlike = what_differs(evaluations)
    warnings = [
        paragraph(f"These scores were NOT taken in the same way: {sentence}", kind="bad") for sentence in unlike
    ]
    differing = table_of(("score", "evaluation", "property", "there", f"in {head[1]}"), details(evaluations), "words")
    content = page(
        f"Comparison with {head[1]}",
        *(warnings or [paragraph(_came_out(rows), kind="plain")]),
        heading("Scores"),
        table_of(head, [[Cell(text, _look(text)) for text in row] for row in body], "words"),
        paragraph(NOTE, kind="faint"),
        *([folded("What differs, score by score", differing)] if unlike else []),
    )
    write_text(folder / "comparison.html", content)


def _came_out(rows: list[list[str]]) -> str:
    """Count in one sentence what is better and worse than in the first evaluation, beyond chance."""
    head, *body = rows
    said = []
    for i in range(2, len(head), 3):
        certain = [row[i + 1] for row in body if row[i + 2].endswith("*")]
        better, worse = (sum(text.endswith(side) for text in certain) for side in (" better", " worse"))
        said.append(f"{head[i]} is better in {better} and worse in {worse} of {len(body)} scores")
    return f"Beyond chance, {'; '.join(said)}."


def _look(text: str) -> str:
    return "good" if text.endswith(" better") else "bad" if text.endswith(" worse") else ""


NOTE = (
    "Differences are to the first column, with the 95 % interval of paired halves of the same real images. p is "
    "two-sided and corrected for the number of comparisons (Holm 1979); an asterisk marks p below 0.05. It covers the "
    "images that were drawn, not the randomness of training: for that, evaluate several seeds."
)


def _different(first: Evaluation, other: Evaluation) -> list[tuple[str, str, Any, Any]]:
    """Return score, property, the other's value and the first one's, of all in which fingerprints differ."""
    found = []
    for name, row in first.rows.items():
        if name in other.rows:
            ours, theirs = row["fingerprint"], other.rows[name]["fingerprint"]
            keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
            found += [(name, key, theirs.get(key), ours.get(key)) for key in keys]
    return found


def _sentence(first: Evaluation, other: Evaluation) -> str:
    found = {key: (theirs, ours) for _, key, theirs, ours in _different(first, other)}
    if not found:
        return ""
    keys = sorted(found, key=lambda key: (key not in DATA, key))
    named = [_in_words(key, *found[key]) for key in keys[:NAMED]]
    named += [f"{len(keys) - NAMED} more"] if len(keys) > NAMED else []
    listed = ", ".join(named[:-1]) + (" and " if named[1:] else "") + named[-1]
    same = "against the same images (against=FOLDER), " if keys[0] in DATA else ""
    return text_of(f"{other.name} differs from {first.name} in {listed}; evaluate both {same}with the same suite.")


def _in_words(key: str, theirs: Any, ours: Any) -> str:
    """Return the name of a property, with its values where they are short."""
    of_images = [_images(one) if isinstance(one, dict) and key in DATA else text_of(one) for one in (theirs, ours)]
    name, shown = DATA.get(key, key.replace("_", " ")), f"{of_images[0]}, not {of_images[1]}"
    return f"{name} ({shown})" if len(shown) <= SHORT and of_images[0] != of_images[1] else name


def _images(described: dict[str, Any]) -> str:
    return f"{described.get('images')} of {described.get('data_set')} {described.get('split') or ''}".rstrip()


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
