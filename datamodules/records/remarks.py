"""What a data set says in the log of its own accord: what was left out, and what makes numbers mean little."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from datamodules.files.cache import Extremes, ImageCache
from datamodules.records.duplicates import some
from datamodules.records.records import Intensity, Record, Used
from datamodules.records.versions import Rule, name_ending, sentences

log = logging.getLogger(__name__)
NARROW = 0.05  # share of the declared range; what fills less is hardly an image
HANDFUL = 5  # groups; of fewer, one decides what is measured on a part
SCARCE = 0.25  # share of the wished images of a class below which a part is named


def say_unusable(data_set: str, images: Sequence[Used], cache: ImageCache) -> None:
    """Count the files that could not be read, with their byte-identical copies, and say what is wrong with some."""
    readable = set(cache.names)
    unusable = [image for image in images if image.record.name not in readable]
    reasons = []
    for image, reason in zip(unusable, cache.unreadable, strict=False):
        copies = some([record.name for record in image.copies])
        reasons.append(f"{reason} (and its byte-identical copies {copies})" if copies else reason)
    if unusable:
        count = sum(len(image.records) for image in unusable)
        log.warning("%s: left out %d unusable files: %s", data_set, count, some(reasons))


def say_narrow(data_set: str, intensity: Intensity, extremes: Mapping[str, Extremes], settings: str) -> None:
    """Say which images, or whether all together, fill next to nothing of the declared range, and which it is.

    The lowest value does not count: it is what padding is filled with.

    Args:
        data_set: Its name.
        intensity: Its declared range.
        extremes: Lowest and highest stored value of each image, by name.
        settings: What declares the range that files' values are brought to, for users; may be empty.
    """
    low, step = intensity.low, (intensity.high - intensity.low) / intensity.levels
    found = {name: (low + step * one.lowest, low + step * one.highest) for name, one in extremes.items()}
    limit = NARROW * (intensity.high - intensity.low)
    narrow = [name for name, (first, last) in found.items() if last - first < limit]
    if not narrow:
        return
    of_all = min(first for first, _ in found.values()), max(last for _, last in found.values())
    if of_all[1] - of_all[0] < limit:
        who, lie = f"all {len(found)} images together fill", f"they lie in {of_all[0]:.4g} .. {of_all[1]:.4g}"
    else:
        first, last = found[narrow[0]]
        who, lie = f"{len(narrow)} images fill", f"e.g. {narrow[0]} lies in {first:.4g} .. {last:.4g}"
    declared = f"{intensity.low:g} .. {intensity.high:g} {intensity.unit}"
    advice = f"; set {settings}" if settings else ""
    log.warning("%s: %s under %g %% of the range %s: %s%s", data_set, who, 100 * NARROW, declared, lie, advice)
    constant = [name for name in narrow if found[name][0] == found[name][1]]
    if constant:
        log.warning("%s: %d images are constant: %s", data_set, len(constant), some(constant))


def say_outdated(data_set: str, directories: Sequence[Path], ending: str, rules: Sequence[Rule]) -> None:
    """Say why images that have a cache are read once more.

    Args:
        data_set: Its name.
        directories: The caches as they were called when all rules were the first.
        ending: What their names end with now.
        rules: The present rules.
    """
    for directory in directories:
        older = sorted(path.name for path in directory.parent.glob(f"{directory.name}*") if path.is_dir())
        if not older or directory.name + ending in older:
            continue
        since = [rule for rule in rules if name_ending([rule]) not in older[-1]]
        log.warning(
            "%s: the cache %s was made by earlier rules of reading and is made anew; the old folder can be deleted. "
            "Changed since: %s",
            data_set,
            older[-1],
            "; ".join(sentences(since)) or "what tags or tables tell of the images",
        )


def table(data_set: str, parts: Mapping[str, Sequence[Record]], classes: Sequence[str]) -> str:
    """Return images, groups and classes per part, a line each."""
    lines = [f"{data_set}: {sum(map(len, parts.values()))} images"]
    for part, records in parts.items():
        counts = Counter(label for record in records for label in record.labels)
        groups, of_classes = len({record.group for record in records}), ", ".join(f"{n} {counts[n]}" for n in classes)
        lines.append(f"  {part:<5} {len(records):>7} images  {groups:>6} groups  {of_classes}".rstrip())
    return "\n".join(lines)


def say_few_groups(data_set: str, part: str, parts: Mapping[str, Sequence[Record]], share: float) -> None:
    """Warn of a part of so few groups that each of them decides what is measured.

    Args:
        data_set: Its name.
        part: "val" or "test".
        parts: The images of each part.
        share: The share of the images that was asked for.
    """
    groups = len({record.group for record in parts[part]})
    if groups < HANDFUL:
        images = sum(map(len, parts.values()))
        log.warning(
            "%s: %s has only %d groups (%d of %d images; asked for was a share of %g): "
            "what is measured on it says little",
            *(data_set, part, groups, len(parts[part]), images, share),
        )


def say_scarce(
    data_set: str,
    part: str,
    parts: Mapping[str, Sequence[Record]],
    classes: Sequence[str],
    share: float,
    drawn: bool,
) -> None:
    """Warn of classes that a part has no image of, or far fewer than its share.

    Args:
        data_set: Its name.
        part: "val" or "test".
        parts: The images of each part.
        classes: All classes.
        share: The share of the images that was asked for.
        drawn: Whether the seed decides the part, rather than a list of the data set's.
    """
    there = Counter(label for records in parts.values() for record in records for label in record.labels)
    found = Counter(label for record in parts[part] for label in record.labels)
    if missing := [name for name in classes if there[name] and not found[name]]:
        log.warning("%s: %s has no image of %s", data_set, part, ", ".join(missing))
    few = [name for name in classes if 0 < found[name] < SCARCE * share * there[name]]
    if few and drawn:
        counts = ", ".join(f"{found[name]} of {there[name]} images of {name}" for name in few)
        log.warning(
            "%s: %s has only %s (asked for was a share of %g); another seed gives another split",
            *(data_set, part, counts, share),
        )
