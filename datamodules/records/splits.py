"""Splits by group: images of one patient (or of one block of neighbouring slices) never lie in two parts."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from datamodules.files.errors import DataError
from datamodules.files.files import write_json

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


def split_by_group(
    groups: Sequence[str], strata: Sequence[str], val_fraction: float, test_fraction: float, seed: int
) -> np.ndarray:
    """Assign each image to "train", "val" or "test", whole groups at a time, within each stratum.

    Groups are visited in random order; those that end within the wished share of a stratum's images go to test, the
    next ones to val, the rest to train. A stratum whose first group is larger than the share has no test images: see
    ``represent_classes``.

    Args:
        groups: Group of each image; a group belongs to one stratum (the one of its first image).
        strata: What should be represented in every part, e.g. the class.
        val_fraction: Wished share of the images in val, 0 to below 1.
        test_fraction: Wished share of the images in test, 0 to below 1.
        seed: Another seed gives another split.

    Returns:
        Array (N,) of split names.
    """
    _check_fractions(val_fraction, test_fraction)
    sizes: dict[str, int] = {}
    stratum_of: dict[str, str] = {}
    for group, stratum in zip(groups, strata, strict=True):
        sizes[group] = sizes.get(group, 0) + 1
        stratum_of.setdefault(group, stratum)
    part: dict[str, str] = {}
    for stratum in sorted(set(stratum_of.values())):
        members = sorted(group for group in sizes if stratum_of[group] == stratum)
        order = np.random.default_rng([seed, len(stratum), *stratum.encode()]).permutation(len(members))
        total, seen = sum(sizes[group] for group in members), 0
        for group in (members[i] for i in order):
            seen += sizes[group]
            if seen <= test_fraction * total:
                part[group] = "test"
            elif seen <= (test_fraction + val_fraction) * total:
                part[group] = "val"
            else:
                part[group] = "train"
    split = np.array([part[group] for group in groups])
    check_disjoint(groups, split.tolist())
    return split


def represent_classes(
    split: np.ndarray,
    groups: Sequence[str],
    labels: Sequence[tuple[str, ...]],
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> np.ndarray:
    """Return a split in which every wished part has every class, made by moving as few groups as that takes.

    A part gets the group whose images are nearest to its share of the class's (in whole shares; the seed decides
    between groups that are equally near). A class of an image with several labels that has too few groups is left as
    it is. Where all parts have all classes, nothing moves.

    Args:
        split: (N,) of split names.
        groups: Group of each image.
        labels: Classes of each image.
        val_fraction: Wished share of the images in val.
        test_fraction: Wished share of the images in test.
        seed: Another seed moves other groups.

    Returns:
        Array (N,) of split names.

    Raises:
        DataError: If a part would be empty, or lack a class where classes exclude each other, naming the class.
    """
    shares = {"test": test_fraction, "val": val_fraction, "train": 1 - val_fraction - test_fraction}
    shares = {part: share for part, share in shares.items() if share > 0}
    part_of = dict(zip(groups, split.tolist(), strict=True))
    images: dict[str, Counter[str]] = {}  # of each class, by group
    without = () if any(labels) else ("",)  # where nothing has a class, all are of one
    for group, names in zip(groups, labels, strict=True):
        for name in names or without:
            images.setdefault(name, Counter())[group] += 1
    for name in sorted(images, key=lambda name: (len(images[name]), name)):  # the rarest has the least choice
        if len(images[name]) >= len(shares):
            for part, share in shares.items():
                _give(part, share, images[name], images, part_of, seed)
        elif all(len(names) <= 1 for names in labels):
            raise DataError(_too_few_of_class(name, len(images[name]), [part for part in SPLITS if part in shares]))
    for part in shares:
        if groups and part not in part_of.values():
            raise DataError(_too_few(part, len(part_of)))
    return np.array([part_of[group] for group in groups])


def check_disjoint(groups: Sequence[str], split: Sequence[str]) -> None:
    """Raise ValueError naming the groups that lie in more than one part."""
    parts: dict[str, set[str]] = {}
    for group, name in zip(groups, split, strict=True):
        parts.setdefault(group, set()).add(str(name))
    leaks = [f"{group} in {' and '.join(sorted(names))}" for group, names in parts.items() if len(names) > 1]
    if leaks:
        raise ValueError(f"{len(leaks)} groups lie in more than one split: {'; '.join(leaks[:5])}")


def stratified_split(
    groups: Sequence[str],
    labels: np.ndarray,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    cache_dir: Path,
) -> np.ndarray:
    """Assign each image to "train", "val" or "test" by iterative stratification of whole groups.

    The algorithm of K. Sechidis et al., "On the stratification of multi-label data", ECML PKDD 2011, deals the groups
    of the rarest label first. It wants labels that are 0 or 1, so a group has a label if at least half of its images
    have it (its mean label, rounded). Measured on a fifth of the 30,805 patients of ChestX-ray14 over 12 seeds, a
    finding's mean over patients deviates by 2.4 % of its value (the worst finding's by 7 %); with "any image has it"
    it is 3.8 % (12 %), at random 5.6 % (20 %). Shares of images deviate by 5 % with any of the three, because patients
    have between 1 and 184 images.

    The result is kept below ``cache_dir``: a group stays where it is until groups, labels, shares, seed or the
    library's version change.

    Args:
        groups: Group of each image.
        labels: (N, K) of 0 and 1 with K > 1, the labels of each image.
        val_fraction: Wished share of the groups in val, 0 to below 1.
        test_fraction: Wished share of the groups in test, 0 to below 1.
        seed: Another seed gives another split.
        cache_dir: Folder that holds the folder ``splits``.

    Returns:
        Array (N,) of split names.

    Raises:
        DataError: If there are too few groups, so that a wished part would be empty.
    """
    _check_fractions(val_fraction, test_fraction)
    if labels.shape[0] != len(groups):
        raise ValueError(f"{len(groups)} groups and {labels.shape[0]} rows of labels")
    if not len(groups) or val_fraction == test_fraction == 0:
        return np.full(len(groups), "train")
    members, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sums = np.stack([np.bincount(member, column) for column in labels.T.astype(float)], axis=1)
    typical = sums / np.bincount(member)[:, None] >= 0.5
    version = metadata.version("iterative-stratification")
    settings = [version, seed, val_fraction, test_fraction, typical.shape, members.tolist()]
    key = hashlib.sha256(json.dumps(settings).encode() + np.packbits(typical).tobytes()).hexdigest()[:20]
    path = cache_dir / "splits" / f"{key}.json"
    parts = _read_parts(path, members.tolist())
    if parts is None:
        parts = _stratify(typical, val_fraction, test_fraction, seed)
        _write_parts(path, dict(zip(members.tolist(), parts, strict=True)))
    return np.array(parts)[member]


def _give(
    part: str,
    share: float,
    members: Counter[str],
    images: dict[str, Counter[str]],
    part_of: dict[str, str],
    seed: int,
) -> None:
    """Move a group of a class to a part that has none, if another part has more than one of it."""
    if any(part_of[group] == part for group in members):
        return
    order = np.random.default_rng([seed, len(members), *part.encode()]).permutation(len(members))
    spare = [group for group in (sorted(members)[i] for i in order) if _is_spare(group, images, part_of)]
    wish = share * members.total()
    if spare:
        nearest = min(spare, key=lambda group: (part_of[group] != "train", round(abs(members[group] - wish) / wish)))
        part_of[nearest] = part


def _is_spare(group: str, images: dict[str, Counter[str]], part_of: dict[str, str]) -> bool:
    """Return whether the part of a group has another one of each of its classes."""
    part = part_of[group]
    return all(
        any(part_of[other] == part for other in members if other != group)
        for members in images.values()
        if group in members
    )


def _too_few_of_class(name: str, groups: int, parts: list[str]) -> str:
    what = f"class {name}" if name else "the data set"
    return (
        f"{what} has {groups} groups (patients or blocks of neighbouring slices), too few for one each in "
        f'{", ".join(parts)}. Add images, or set data.val_fraction=0 for no "val" or data.test_fraction=0 for no "test"'
    )


def _check_fractions(val_fraction: float, test_fraction: float) -> None:
    if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise ValueError(
            f"val_fraction={val_fraction}, test_fraction={test_fraction}: must not be negative and must leave a "
            "share for training"
        )


def _stratify(labels: np.ndarray, val_fraction: float, test_fraction: float, seed: int) -> list[str]:
    """Return the part of each group, given its labels (G, K): first test is taken out of all, then val of the rest."""
    # Imported here because it imports scikit-learn, which takes 2 s.
    from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit

    parts, rest = ["train"] * len(labels), np.arange(len(labels))
    seeds = np.random.SeedSequence(seed).generate_state(2)
    shares = {"test": test_fraction, "val": val_fraction / (1 - test_fraction)}
    for (part, share), part_seed in zip(shares.items(), seeds, strict=True):
        if share == 0:
            continue
        splitter = MultilabelStratifiedShuffleSplit(n_splits=1, test_size=share, random_state=int(part_seed))
        try:
            kept, taken = next(splitter.split(labels[rest], labels[rest]))
        except ValueError as error:
            raise DataError(f"{_too_few(part, len(labels))} ({error})") from error
        if not len(taken) or not len(kept):
            raise DataError(_too_few(part, len(labels)))
        for i in rest[taken]:
            parts[i] = part
        rest = rest[kept]
    return parts


def _too_few(part: str, groups: int) -> str:
    return (
        f"{groups} groups (patients) are too few for a split with data.{part}_fraction as it is: "
        f'a part would be empty. Add images, change data.{part}_fraction, or set it to 0 for no "{part}"'
    )


def _read_parts(path: Path, members: list[str]) -> list[str] | None:
    """Return the part of each group from a file, or None if there is none or it is damaged."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and found.keys() == set(members) and all(part in SPLITS for part in found.values()):
        return [found[group] for group in members]
    log.warning("%s is damaged; the split is computed again", path)
    return None


def _write_parts(path: Path, parts: dict[str, str]) -> None:
    """Write the file whole or not at all; another process may write the same one now."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # names patients
        write_json(path, parts)
    except OSError as error:
        raise DataError(f"data.cache_dir={path.parent.parent}: {error}") from error
