"""Duplicates: one image under several names, and what it says of their patients and labels."""

import logging
from collections.abc import Sequence
from typing import Protocol

log = logging.getLogger(__name__)
Questions = tuple[tuple[str, ...], ...]


class Named(Protocol):
    """What is asked of a record."""

    @property
    def name(self) -> str:
        """Unique within the data set."""

    @property
    def group(self) -> str:
        """Patient or block of slices."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its classes."""


class JoinedGroups:
    """Groups that hold the same image: one patient under several names, who would else lie in several splits.

    They become one group, which gets the name of the first.
    """

    def __init__(self) -> None:
        self._into: dict[str, str] = {}

    def name(self, group: str) -> str:
        """Return what a group is called now."""
        while group in self._into:
            group = self._into[group]
        return group

    def join(self, group: str, other: str) -> str | None:
        """Make two groups one; return what was joined with what, or None if they were one."""
        group, other = self.name(group), self.name(other)
        if group == other:
            return None
        self._into[other] = group
        return f"{other} with {group}"


class Duplicates:
    """Duplicates of one kind: the first is kept, or none if their labels differ, for which are right is not known.

    Args:
        data_set: Its name, for the log.
        kind: What they share, e.g. "byte-identical".
        groups: Where groups are joined.
        questions: See ``agree``.

    Attributes:
        labels: All that is known of an image that is kept, by its name.
    """

    def __init__(self, data_set: str, kind: str, groups: JoinedGroups, questions: Questions = ()) -> None:
        self.data_set, self.kind, self.groups, self.questions = data_set, kind, groups, questions
        self.labels: dict[str, tuple[str, ...]] = {}
        self.dropped: list[str] = []
        self.contradicting: list[str] = []
        self.joined: list[str] = []

    def add(self, same: Sequence[Named], join: bool = True) -> None:
        """Note records of one image; ``join`` says whether it tells that their groups are one."""
        first, *others = same
        if join:
            pairs = [self.groups.join(first.group, other.group) for other in others]
            self.joined += [pair for pair in pairs if pair]
        if agree(same, self.questions):
            self.labels[first.name] = tuple(dict.fromkeys(label for record in same for label in record.labels))
            self.dropped += [record.name for record in others]
        else:
            self.contradicting += [record.name for record in same]

    def say(self) -> None:
        """Count and name them in the log."""
        if self.dropped:
            log.warning("%s: dropped %d %s duplicates: %s", self.data_set, *_counted(self.dropped, self.kind))
        if self.contradicting:
            log.warning(
                "%s: left out %d %s duplicates with different labels, none of which can be trusted: %s",
                self.data_set,
                *_counted(self.contradicting, self.kind),
            )
        if self.joined:
            log.warning("%s: joined groups that share %s files: %s", self.data_set, self.kind, some(self.joined))


def agree(same: Sequence[Named], questions: Questions = ()) -> bool:
    """Return whether records have the same labels.

    Args:
        same: The records.
        questions: Labels that exclude each other, e.g. left and right; a record without any of them does not know,
            which contradicts nothing. Empty = labels are all that there is to know.
    """
    if not questions:
        return all(set(record.labels) == set(same[0].labels) for record in same)
    said = {label for record in same for label in record.labels}
    return all(len(said & set(question)) <= 1 for question in questions)


def some(names: Sequence[str], shown: int = 5) -> str:
    """Return the first names, and how many there are more."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _counted(names: list[str], kind: str) -> tuple[int, str, str]:
    return len(names), kind, some(names)
