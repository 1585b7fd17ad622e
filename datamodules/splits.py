"""Splits by group: images of one patient (or of one block of neighbouring slices) never lie in two parts."""

from collections.abc import Sequence

import numpy as np

SPLITS = ("train", "val", "test")


def split_by_group(
    groups: Sequence[str], strata: Sequence[str], val_fraction: float, test_fraction: float, seed: int
) -> np.ndarray:
    """Assign each image to "train", "val" or "test", whole groups at a time, within each stratum.

    Groups are visited in random order; those that end within the wished share of a stratum's images go to test, the
    next ones to val, the rest to train. A stratum whose first group is larger than the share has no test images.

    Args:
        groups: Group of each image; a group belongs to one stratum (the one of its first image).
        strata: What should be represented in every part, e.g. the class.
        val_fraction: Wished share of the images in val, 0 to below 1.
        test_fraction: Wished share of the images in test, 0 to below 1.
        seed: Another seed gives another split.

    Returns:
        Array (N,) of split names.
    """
    if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise ValueError(
            f"val_fraction={val_fraction}, test_fraction={test_fraction}: must not be negative and must leave a "
            "share for training"
        )
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


def check_disjoint(groups: Sequence[str], split: Sequence[str]) -> None:
    """Raise ValueError naming the groups that lie in more than one part."""
    parts: dict[str, set[str]] = {}
    for group, name in zip(groups, split, strict=True):
        parts.setdefault(group, set()).add(str(name))
    leaks = [f"{group} in {' and '.join(sorted(names))}" for group, names in parts.items() if len(names) > 1]
    if leaks:
        raise ValueError(f"{len(leaks)} groups lie in more than one split: {'; '.join(leaks[:5])}")
