"""In which batches a phase runs: pure functions of the number of batches before."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from dataclasses import dataclass


class Cadence(ABC):
    """Steps of a phase, each in the last batch of its cycle. Subclasses are frozen dataclasses of plain numbers."""

    @abstractmethod
    def batches(self, steps: int) -> int:
        """Return how many batches so many steps take: 0 for none, and at least one more for each further step."""

    def steps(self, batches: int) -> int:
        """Return how many steps have been taken after so many batches."""
        return bisect_right(range(batches + 2), batches, key=self.batches) - 1

    def due(self, batch_index: int) -> bool:
        """Tell whether a step is taken in this batch."""
        return self.batches(self.steps(batch_index) + 1) == batch_index + 1

    def cycle(self, batch_index: int) -> int:
        """Return the length, in batches, of the cycle that this batch lies in."""
        steps = self.steps(batch_index)
        return self.batches(steps + 1) - self.batches(steps)


@dataclass(frozen=True)
class Every(Cadence):
    """A step in every n-th batch, the last of each n.

    With a critic in every batch and a generator in every fifth, the generator follows five critic steps (n_critic); a
    lazy regularisation is the same (Karras 2020a).

    Args:
        n: Batches per step.
    """

    n: int

    def __post_init__(self) -> None:
        """Refuse a cycle that has no batch."""
        _check_at_least_one(n=self.n)

    def batches(self, steps: int) -> int:
        """Return n for each step."""
        return self.n * steps


@dataclass(frozen=True)
class CriticSteps(Cadence):
    """A generator's step after so many of the critic's, many more of them at first and now and then.

    VA-GAN (Baumgartner 2018) takes 5, and 100 before each of the first 25 steps of the generator and before every
    100th: ``CriticSteps(5, many=100, first=25, again=100)``. Step 0 is the first.

    Args:
        usual: Critic steps before a step of the generator.
        many: Critic steps before the steps that ``first`` and ``again`` name.
        first: Steps of the generator at the beginning.
        again: Every so many steps; those whose number is a multiple of it.
    """

    usual: int
    many: int
    first: int
    again: int

    def __post_init__(self) -> None:
        """Refuse cycles that have no batch."""
        _check_at_least_one(usual=self.usual, many=self.many, again=self.again)
        if self.first < 0:
            raise ValueError(f"first={self.first}: must not be negative")

    def batches(self, steps: int) -> int:
        """Return ``usual`` for each step, and what the long ones take beyond it."""
        multiples = -(-steps // self.again) - -(-min(steps, self.first) // self.again)  # from ``first`` on
        return self.usual * steps + (self.many - self.usual) * (min(steps, self.first) + multiples)


def _check_at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")


EVERY_BATCH = Every(1)
