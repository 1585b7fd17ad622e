"""A paper's numbers and claims beside ours: reproduced, not reproduced, or not comparable and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.papers.study import Measured, Number, Study

TOLERANCE = 0.1  # a paper's score has no interval: so far from it, relative, counts as the same
FID, EMBEDDED = "fid", "frechet_random_conv"


@dataclass(frozen=True)
class Verdict:
    """What became of a number or a claim.

    Attributes:
        word: "reproduced", "not reproduced", "not comparable", "undecided" or "not run".
        sentence: Why, in plain words.
    """

    word: str
    sentence: str


@dataclass(frozen=True)
class Spread:
    """One score of a row over its seeds.

    Attributes:
        values: One per seed.
        low: Lowest end of their intervals, or the lowest value where there are none.
        high: Highest end.
    """

    values: tuple[float, ...]
    low: float
    high: float

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.values))

    def __str__(self) -> str:
        each = "" if len(self.values) == 1 else f" ({', '.join(f'{value:.4g}' for value in self.values)})"
        return f"{self.mean:.4g}{each}, {self.low:.4g} to {self.high:.4g}"


def spread(found: Sequence[Measured], score: str) -> Spread | None:
    """Return a score of a row's seeds; None where it was not taken of all."""
    ranges = [range_of(one, score) for one in found]
    taken = [ends for ends in ranges if ends is not None]
    if not taken or len(taken) < len(ranges):
        return None
    low, values, high = zip(*taken, strict=True)
    return Spread(values, min(low), max(high))


def range_of(measured: Measured, score: str) -> tuple[float, float, float] | None:
    """Return a score of one run between the ends of its interval, which are the score where there is none."""
    row = measured.scores.get(score)
    if row is None or row["value"] is None:
        return None
    low, high = (row["low"], row["high"]) if "low" in row else (row["value"], row["value"])
    return low, row["value"], high


def score_of(found: Mapping[str, Sequence[Measured]]) -> str:
    """Return the score that rows are compared by: the FID if all have it, else the embedded extractor's."""
    measured = [one for of_row in found.values() for one in of_row]
    return FID if measured and all(range_of(one, FID) for one in measured) else EMBEDDED


def of_number(study: Study, number: Number, found: Sequence[Measured]) -> Verdict:
    """Return what became of one of the paper's scores.

    Args:
        study: The study.
        number: The score.
        found: The row's runs that have finished.
    """
    if not found:
        return Verdict("not run", "No run of this row has got there.")
    if number.value is None:
        return Verdict("not comparable", "The paper gives no score.")
    if reasons := _reasons(study, found):
        return Verdict("not comparable", f"Not comparable: {'; '.join(reasons)}.")
    fid, single = spread(found, FID), spread(found, "frechet_single_root_inception")
    assert fid is not None
    if _near(fid, number.value):
        return Verdict("reproduced", f"{fid.mean:.4g} is within {TOLERANCE:.0%} of {number.value:g}.")
    if single is not None and _near(single, number.value):
        said = f"{fid.mean:.4g} is not within {TOLERANCE:.0%} of {number.value:g}, but the formula as printed "
        return Verdict("reproduced", f"{said}gives {single.mean:.4g}, which is.")
    return Verdict("not reproduced", f"{fid.mean:.4g} is not within {TOLERANCE:.0%} of {number.value:g}.")


def of_claim(score: str, better: Sequence[Measured], worse: Sequence[Measured]) -> Verdict:
    """Return what became of "this row is better than that one", for a score that is better if lower.

    It holds, or the contrary does, only where the intervals of all seeds of the one lie below those of the other.
    """
    first, second = spread(better, score), spread(worse, score)
    if first is None or second is None:
        return Verdict("not run", "No run of one of the two has finished.")
    said = f"{first.mean:.4g} against {second.mean:.4g}"
    seeds = min(len(first.values), len(second.values))
    seeds_say = f"every one of {seeds} seeds" if seeds > 1 else "one seed"
    if first.high < second.low:
        return Verdict("reproduced", f"{said}: lower for {seeds_say}, and the intervals do not overlap.")
    if second.high < first.low:
        return Verdict("not reproduced", f"{said}: higher for {seeds_say}, and the intervals do not overlap.")
    return Verdict("undecided", f"{said}: the intervals of {seeds_say} overlap.")


def _near(found: Spread, value: float) -> bool:
    return abs(found.mean - value) <= TOLERANCE * value


def _reasons(study: Study, found: Sequence[Measured]) -> list[str]:
    """Return why scores here cannot be compared with the paper's."""
    reasons = [study.scale.about] if study.scale.about else []
    if spread(found, FID) is None:
        reasons.append("Inception-v3's weights were not at hand, and another extractor has another scale")
    images = sum(found[0].trained.module.data_facts["images"].values())
    if images != study.paper.images:
        reasons.append(f"{images:,} images of data instead of {study.paper.images:,}")
    return reasons
