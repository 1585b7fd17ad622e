"""What is known of a run: what callbacks measure, and the progress bar, the checkpoints and the report read."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Better = Literal["lower", "higher"]


class Score(NamedTuple):
    """A periodic score.

    Attributes:
        name: E.g. "score/frechet_efficientnet_lite0".
        fingerprint: A hash of what two scores must share to be compared.
        value: The score.
        better: Which way a value points.
    """

    name: str
    fingerprint: str
    value: float
    better: Better = "lower"

    def beats(self, value: float) -> bool:
        """Tell whether this score is better than a value of its kind; a NaN never is."""
        return self.value < value if self.better == "lower" else self.value > value


@dataclass
class RunRecord:
    """What is known of a run.

    Attributes:
        latest: Newest value of every logged number, by name.
        score: The newest score; None before the first.
        scored_at: Clock of the newest score, -1 before the first.
        verdict: What the health watch says of the run, in a few words; empty until it has spoken.
        roll_backs: How often the run has gone back to a checkpoint; each time multiplies all learning rates by
            ``PhasedModule.roll_back_factor``.
        rate_drops: Clock and factor of every drop of the learning rates that validation has decided on. Part of the
            checkpoint and equal on all processes: the one thing beside the clock that a rate depends on.
    """

    latest: dict[str, float] = field(default_factory=dict)
    score: Score | None = None
    scored_at: int = -1
    verdict: str = ""
    roll_backs: int = 0
    rate_drops: list[tuple[int, float]] = field(default_factory=list)

    def drop_rates(self, images_seen: int, factor: float) -> None:
        """Multiply all learning rates from a clock on; every process must do the same.

        Raises:
            ValueError: If the factor is not above 0 and at most 1.
        """
        if not 0.0 < factor <= 1.0:
            raise ValueError(f"factor={factor}: must be above 0 and at most 1")
        self.rate_drops.append((int(images_seen), float(factor)))
