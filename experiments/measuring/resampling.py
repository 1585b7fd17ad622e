"""Halves of sets of images: what intervals, floors and the significance of differences are made of.

A score's spread is measured on random halves of the groups (patients), drawn without replacement. For a mean over n
groups, half of them vary around the whole as much as n new groups would vary around the truth (Shao and Wu 1989, "A
general theory for jackknife variance estimation", with half of the sample deleted), so the standard deviation over
halves is the standard error of the score. The usual bootstrap, with replacement, does not work here: an image that is
drawn twice is its own nearest neighbour at distance 0, and repeated images make every Frechet distance larger.

Two halves of the real images that share no group are also two samples as the generated and the real ones would be if
the generator were perfect: their scores are the floor.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t


@dataclass(frozen=True)
class Halves:
    """Two disjoint sets of rows in random orders; no group lies in both."""

    first: np.ndarray
    second: np.ndarray


def halves(groups: Sequence[str], seed: int, replicate: int) -> Halves:
    """Split rows at random by group, into parts whose sizes differ by at most the last group's.

    A pure function of its arguments, so that two evaluations against the same real images use the same halves and
    their scores can be compared pair by pair.

    Args:
        groups: Group of each row (N,).
        seed: Of the evaluation.
        replicate: Number of the split.
    """
    digest = hashlib.blake2b(f"halves/{seed}/{replicate}".encode(), digest_size=8).digest()
    random = np.random.default_rng(int.from_bytes(digest, "little"))
    names, of = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    order = random.permutation(len(names))
    sizes = np.bincount(of, minlength=len(names))[order]
    filled = np.cumsum(sizes) - sizes / 2.0
    in_first = np.zeros(len(names), dtype=bool)
    in_first[order[filled < len(of) / 2.0]] = True
    rows = random.permutation(len(of))  # so that the first ones of a half are a random part of it
    return Halves(rows[in_first[of[rows]]], rows[~in_first[of[rows]]])


def together(groups: Sequence[str]) -> list[str]:
    """Return groups called by the place of their first row: halves then do not depend on what groups are called."""
    first: dict[str, int] = {}
    return [str(first.setdefault(group, i)) for i, group in enumerate(groups)]


def interval(value: float, replicates: Sequence[float], freedom: int) -> tuple[float, float]:
    """Return the 95 % interval of a score from its values on halves.

    Args:
        value: The score of all images.
        replicates: Its values on halves.
        freedom: Degrees of freedom of Student's t: the smaller number of groups and replicates, less one.
    """
    spread = float(student_t.ppf(0.975, freedom) * np.std(replicates, ddof=1))
    return value - spread, value + spread
