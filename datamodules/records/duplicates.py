"""Duplicates: one image under several names, and what it says of their patients and labels."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from datamodules.files.cache import ImageCache, is_blank
from datamodules.records.records import Record, Used
from datamodules.records.versions import rules_of

log = logging.getLogger(__name__)
Questions = tuple[tuple[str, ...], ...]

# Values of an image from which on equal pixels say that it is the same one. Measured on 2,627 kidney slices: neighbours
# coincide 124 times at 4x4, never from 8x8 on.
TELLING = 16 * 16


def by_content(data_set: str, records: Sequence[Record], contents: Sequence[str], memo: Path) -> list[Used]:
    """Return the first record of each content, with the others as its copies.

    Args:
        data_set: Its name.
        records: Every image that there is.
        contents: Of each, a hash of its file, or what it is drawn from.
        memo: Where the rules by which files are read are remembered.
    """
    same: dict[str, list[Record]] = {}
    for record, content in zip(records, contents, strict=True):
        same.setdefault(content, []).append(record)
    files = {content: first.path for content, (first, *_) in same.items() if first.path is not None}
    rules = dict(zip(files, rules_of(list(files.values()), list(files), memo), strict=True)) if files else {}
    drawn = data_set, 1
    return [
        Used(first, content, rules.get(content, drawn), tuple(others)) for content, (first, *others) in same.items()
    ]


def without_duplicates(
    data_set: str,
    images: Sequence[Used],
    cache: ImageCache,
    copied: Iterable[Used],
    contradicting: Mapping[str, bool],
    questions: Questions,
) -> tuple[list[Used], np.ndarray]:
    """Return the images of a cache with what is known of them, and the rows (N,) of those that are used.

    Labels are all that files of one image say; groups that share an image are joined. Files that cannot be read are
    none of the cache's: one error page under many names says nothing of patients. Nor does an image of one value, e.g.
    all black.

    Args:
        data_set: Its name, for the log.
        images: Those of the cache, in its order.
        cache: The one of the largest images.
        copied: Images that have byte-identical copies.
        contradicting: Those whose labels contradict and that can be read, each with whether it has several values.
        questions: See ``agree``.
    """
    groups = JoinedGroups()
    identical = Duplicates(data_set, "byte-identical", groups, questions)
    identical.add_files(copied, contradicting, cache)
    identical.say()
    known = [_with(image, labels=identical.labels.get(image.record.name)) for image in images]
    resaved = Duplicates(data_set, "re-saved (other bytes, equal pixels)", groups, questions)
    resaved.add_pixels([image.record for image in known], cache)
    resaved.say()
    known = [_with(image, resaved.labels.get(image.record.name), groups.name(image.record.group)) for image in known]
    left_out = {*resaved.dropped, *resaved.contradicting}
    return known, np.array([row for row, name in enumerate(cache.names) if name not in left_out], dtype=int)


def _with(image: Used, labels: tuple[str, ...] | None = None, group: str | None = None) -> Used:
    record = image.record
    return image._replace(record=replace(record, labels=labels or record.labels, group=group or record.group))


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

    def join(self, group: str, other: str) -> bool:
        """Make two groups one; return whether they were two."""
        group, other = self.name(group), self.name(other)
        if group != other:
            self._into[other] = group
        return group != other


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

    def add(self, same: Sequence[Record], join: bool = True) -> None:
        """Note records of one image; ``join`` says whether it tells that their groups are one."""
        first, *others = same
        if join:
            # Files are named, not groups: the log hides names of files, but not ids as short as "7".
            self.joined += [
                f"{other.name} as {first.name}" for other in others if self.groups.join(first.group, other.group)
            ]
        if agree(same, self.questions):
            self.labels[first.name] = tuple(dict.fromkeys(label for record in same for label in record.labels))
            self.dropped += [record.name for record in others]
        else:
            self.contradicting += [record.name for record in same]

    def add_files(self, copied: Iterable[Used], contradicting: Mapping[str, bool], cache: ImageCache) -> None:
        """Note byte-identical files.

        Args:
            copied: Images that have copies.
            contradicting: Those whose labels contradict and that can be read, each with whether it has several values.
            cache: Holds the others, if they can be read: a file that cannot is a copy of nothing.
        """
        row_of = {name: row for row, name in enumerate(cache.names)}
        for image in copied:
            name = image.record.name
            if name in contradicting:
                self.add(image.records, join=contradicting[name])
            elif name in row_of:
                self.add(image.records, join=not is_blank(cache.read(np.array([row_of[name]]))))

    def add_pixels(self, records: Sequence[Record], cache: ImageCache) -> None:
        """Note images of other bytes with the same pixels; drawn and small images may be equal by chance.

        Args:
            records: What is known of each image of the cache.
            cache: The one of the largest images.
        """
        if cache.values_per_image < TELLING:
            return
        blank: list[str] = []
        for rows in cache.equal_rows():
            same = [records[row] for row in rows if records[row].path is not None]
            if is_blank(cache.read(rows[:1])):
                blank += [record.name for record in same]
            elif len(same) > 1:
                self.add(same)
        if blank:
            log.warning(
                "%s: %d images are equal because they have one value only; they are kept, and join no groups: %s",
                self.data_set,
                len(blank),
                some(blank),
            )

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
            log.warning("%s: joined the groups of %s files: %s", self.data_set, self.kind, some(self.joined))


def agree(same: Sequence[Record], questions: Questions = ()) -> bool:
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
