"""A paper's numbers and claims beside ours: reproduced, not reproduced, or not comparable and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.papers.paper import Number
from experiments.papers.study import Measured, Study

TOLERANCE = 0.1  # a paper's score has no interval: so far from it, relative, counts as the same
UNUSABLE = 0.01  # share of the paper's images that may be missing: files that cannot be read, and strays


@dataclass(frozen=True)
class Verdict:
    """What became of a number or a claim.

    Attributes:
        word: "reproduced", "not reproduced", "not comparable", "undecided" or "not run"; of a claim at a smaller scale
            or on other data "same direction here" or "other direction here".
        sentence: Why, in plain words.
    """

    word: str
    sentence: str


@dataclass(frozen=True)
class Spread:
    """One score of a row over its seeds.

    Attributes:
        values: One per seed.
        low: Lowest end of their 95 % intervals; None where a seed has none.
        high: Highest end.
    """

    values: tuple[float, ...]
    low: float | None
    high: float | None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.values))

    def __str__(self) -> str:
        each = "" if len(self.values) == 1 else f" ({', '.join(f'{value:.4g}' for value in self.values)})"
        ends = "" if self.low is None else f", {self.low:.4g} to {self.high:.4g}"
        return f"{self.mean:.4g}{each}{ends}"


def spread(found: Sequence[Measured], score: str) -> Spread | None:
    """Return a score of a row's seeds; None where it was not taken of all."""
    rows = [one.scores[score] for one in found if score in one.scores and one.scores[score]["value"] is not None]
    if not rows or len(rows) < len(found):
        return None
    values = tuple(float(row["value"]) for row in rows)
    if not all("low" in row for row in rows):
        return Spread(values, None, None)
    return Spread(values, min(row["low"] for row in rows), max(row["high"] for row in rows))


def score_of(study: Study, found: Mapping[str, Sequence[Measured]]) -> str:
    """Return the score that rows are compared by: the paper's if all have it, else what stands in for it."""
    measured = [of_row for of_row in found.values() if of_row]
    has_all = bool(measured) and all(spread(of_row, study.paper.score) for of_row in measured)
    return study.paper.score if has_all else study.paper.stand_in


def of_number(study: Study, number: Number, found: Sequence[Measured]) -> Verdict:
    """Return what became of one of the paper's scores.

    Args:
        study: The study.
        number: The score.
        found: The row's runs that have got there.
    """
    if not found:
        return Verdict("not run", _why_not_run(study, number.row))
    if number.value is None:
        return Verdict("not comparable", f"The paper gives no score.{_without(study, number.row)}")
    if reasons := _less(study, found) + _not_taken(study, found):
        return Verdict("not comparable", f"Not comparable: {'; '.join(reasons)}.{_without(study, number.row)}")
    ours = spread(found, study.paper.score)
    variant = spread(found, study.paper.variant) if study.paper.variant else None
    assert ours is not None
    said, without = f"within {TOLERANCE:.0%} of {number.value:g}", _without(study, number.row)
    if _near(ours, number.value):
        return Verdict("reproduced", f"{ours.mean:.4g} is {said}.{without}")
    if variant is not None and _near(variant, number.value):
        title = study.paper.columns[study.paper.variant or ""]
        return Verdict("reproduced", f"{ours.mean:.4g} is not {said}, but {title} is: {variant.mean:.4g}.{without}")
    return Verdict("not reproduced", f"{ours.mean:.4g} is not {said}.{without}")


def of_claim(study: Study, rows: tuple[str, str], better: Sequence[Measured], worse: Sequence[Measured]) -> Verdict:
    """Return what became of "the first row is better than the second".

    It holds, or the contrary does, only where the intervals of all seeds of the one lie below those of the other.

    Args:
        study: The study.
        rows: Names of the two rows.
        better: Runs of the row that is said to be better.
        worse: Runs of the other row.
    """
    for row, found in zip(rows, (better, worse), strict=True):
        if not found:
            return Verdict("not run", _why_not_run(study, row))
    score = score_of(study, {"better": better, "worse": worse})
    first, second = spread(better, score), spread(worse, score)
    if first is None or second is None:
        return Verdict("not comparable", f"Not comparable: {'; '.join(_not_taken(study, [*better, *worse]))}.")
    said = f"{study.paper.columns[score]} {first.mean:.4g} against {second.mean:.4g}"
    without = "".join(dict.fromkeys(_without(study, row) for row in rows))
    if first.low is None or second.low is None or first.high is None or second.high is None:
        return Verdict("undecided", f"{said}: there are too few images for intervals.{without}")
    seeds = min(len(first.values), len(second.values))
    of = f"for each of {seeds} seeds" if seeds > 1 else "for one seed, so that the spread of training is not known"
    as_there = not _less(study, [*better, *worse])
    if first.high < second.low:
        word = "reproduced" if as_there else "same direction here"
        return Verdict(word, f"{said}: lower {of}; no intervals overlap.{without}")
    if second.high < first.low:
        word = "not reproduced" if as_there else "other direction here"
        return Verdict(word, f"{said}: higher {of}; no intervals overlap.{without}")
    return Verdict("undecided", f"{said}: intervals overlap.{without}")


def _near(found: Spread, value: float) -> bool:
    return abs(found.mean - value) <= TOLERANCE * value


def _less(study: Study, found: Sequence[Measured]) -> list[str]:
    """Return in what the study is less than the paper, or other."""
    reasons = [f"scale {study.settings.scale}"] if study.scale.about else []
    images = sum(found[0].trained.module.data_facts["images"].values())
    if abs(images - study.paper.images) > UNUSABLE * study.paper.images:
        reasons.append(f"{images:,} images of data instead of {study.paper.images:,}")
    return reasons


def _not_taken(study: Study, found: Sequence[Measured]) -> list[str]:
    """Return why the paper's score was not taken."""
    if spread(found, study.paper.score) is not None:
        return []
    rows = [one.scores.get(study.paper.score) for one in found]
    refused = [row["refused"] for row in rows if row is not None and row["value"] is None]
    title = study.paper.columns[study.paper.score]
    return [f"no {title} ({refused[0] if refused else 'the weights of its extractor were not at hand'})"]


def _why_not_run(study: Study, row: str) -> str:
    if row not in study.rows:
        return f"Left out at scale {study.settings.scale}."
    states = ", ".join(f"seed {run.seed} {run.state()}" for run in study.runs_of(row))
    return f"No run of {study.rows[row].title} has got there: {states}."


def _without(study: Study, row: str) -> str:
    """Return which of a row's seeds are missing from its scores, as a sentence, or nothing."""
    missing = [f"seed {run.seed} ({run.state()})" for run in study.runs_of(row) if run.directory() is None]
    return f" Without {', '.join(missing)} of {study.rows[row].title}." if missing else ""
