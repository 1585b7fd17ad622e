"""What is said of a configuration that is wrong."""

import difflib
from collections.abc import Sequence
from typing import Any


class ConfigError(Exception):
    """Everything that is wrong with a configuration, one sentence per problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)

    def __reduce__(self) -> tuple[type, tuple[list[str]]]:
        """Let another process raise it: Python would hand over the joined text instead of the problems."""
        return type(self), (self.problems,)


def did_you_mean(name: str, known: Any, likeness: float = 0.5) -> str:
    """Return "; did you mean ...?" with the nearest known names, or nothing."""
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=likeness)
    return f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
