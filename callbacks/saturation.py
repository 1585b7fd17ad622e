"""Does a score still say anything? A rule for a score that only wanders."""

import itertools
from collections.abc import Sequence

import numpy as np

from callbacks.state import Count, State

WINDOW = 10  # scores that are looked at
# About as many of their 45 pairs must have risen as fallen. Two times in three scores without a trend are told, once in
# a hundred scores that fall by four times their scatter over the window (tests/callbacks/test_saturation.py). A run
# of 40 scores is asked 31 times: of runs that fall that fast throughout one in seven is told at some time, of those
# that fall half as fast nearly all.
TREND = 0.3


class Scored(State):
    """A score at its clock, as a checkpoint holds it."""

    images_seen: Count
    value: float


def saturation(scores: Sequence[Scored]) -> str:
    """Return in words that a score only wanders, or nothing.

    Kendall's tau between clock and score (Mann 1945, "Nonparametric tests against trend") must be below ``TREND`` in
    size over the last ``WINDOW`` scores. Ranks do not see how far a score fell: so the first of them must not be the
    highest, as at the end of a steep fall, and the last not the lowest, as in one that goes on.

    Args:
        scores: Of one kind, lower is better, oldest first; only the last ``WINDOW`` count.
    """
    recent = scores[-WINDOW:]
    values = [score.value for score in recent]
    if len(values) < WINDOW or not np.isfinite(values).all():
        return ""
    if values[0] == max(values) or values[-1] == min(values):
        return ""
    signs = [np.sign(later - earlier) for earlier, later in itertools.combinations(values, 2)]
    if abs(sum(signs)) >= TREND * len(signs):
        return ""
    return (
        f"the score has only wandered between {min(values):.3g} and {max(values):.3g} since "
        f"{recent[0].images_seen:,} images ({WINDOW} scores without a trend): an improvement of less than that "
        "does not show in so few of them"
    )
