"""By what images are told apart: which of them are of one sex, view, age or finding."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.configuration.errors import ConfigError

# Years at which bands of age begin: those of Seyyed-Kalantari 2021 (Nature Medicine 27:2176), who found that
# classifiers of chest films miss most in the youngest.
AGES = (20, 40, 60, 80)
MOST = 50  # values of an attribute; what has more is a name or a number, and no slice has enough images


class Members(NamedTuple):
    """Which images of a set belong to which slice.

    Attributes:
        of: For each image whether it belongs to the slice (N,), bool, by the slice's name.
        known: For each image whether anything is known of the attribute (N,), bool.
    """

    of: dict[str, np.ndarray]
    known: np.ndarray

    def rest(self, name: str) -> np.ndarray:
        """Return which images are known to be in other slices only (N,), bool."""
        return self.known & ~self.of[name]


def members(about: Sequence[Mapping[str, str]], attribute: str, names: Sequence[str] | None = None) -> Members:
    """Return the slices by an attribute, each value of it one; values that are joined by "|" count for each.

    Args:
        about: What is known of each image.
        attribute: The attribute; of "age" the slices are bands of years.
        names: Slices that are wanted; None = all that occur, bands of age in order, others by name.

    Raises:
        ConfigError: If an age is no number.
    """
    values = [one.get(attribute, "").strip() for one in about]
    of_each = [_bands(value) if attribute == "age" else _values(value) for value in values]
    occurring = {name for names_of_one in of_each for name in names_of_one}
    ordered = [band for band in BANDS if band in occurring] if attribute == "age" else sorted(occurring)
    wanted = ordered if names is None else names
    of = {name: np.array([name in names_of_one for names_of_one in of_each], dtype=bool) for name in wanted}
    return Members(of, np.array([bool(names_of_one) for names_of_one in of_each], dtype=bool))


def problems_of(wanted: Sequence[str], about: Sequence[Mapping[str, str]], whose: str, where: str) -> list[str]:
    """Return which attributes a set of images does not have, or that make no slices.

    Args:
        wanted: The attributes.
        about: What is known of each image.
        whose: Whose images they are, for the messages.
        where: Where the attributes would have to stand, for the messages.
    """
    there = sorted({name for one in about for name, value in one.items() if value})
    problems = []
    for attribute in wanted:
        if attribute not in there:
            has = f"known of them is {', '.join(there)}" if there else "nothing is known of them"
            problems.append(f"by={attribute}: {whose} are not told apart by it{where} ({has})")
            continue
        try:
            found = members(about, attribute).of
        except ConfigError as error:
            problems += [f"{problem} ({whose}{where})" for problem in error.problems]
            continue
        if len(found) == 1:
            problems.append(f"by={attribute}: all {whose} of which it is known are {next(iter(found))}")
        if len(found) > MOST:
            problems.append(f"by={attribute}: has {len(found)} values, more than {MOST}: it names images, not slices")
    return problems


def strange_values(attribute: str, real: Mapping[str, np.ndarray], about: Sequence[Mapping[str, str]]) -> str:
    """Return which values generated images have that no real image has, with counts, or nothing.

    Args:
        attribute: The attribute.
        real: The slices of the real images.
        about: What is known of each generated image.
    """
    strange = {name: int(of.sum()) for name, of in members(about, attribute).of.items() if name not in real}
    return ", ".join(f"{name} ({count} images)" for name, count in strange.items())


def _values(text: str) -> list[str]:
    return [value.strip() for value in text.split("|") if value.strip()]


BANDS = (
    f"under {AGES[0]}",
    *(f"{low} to {high - 1}" for low, high in itertools.pairwise(AGES)),
    f"{AGES[-1]} and older",
)


def _bands(text: str) -> list[str]:
    if not text:
        return []
    if not re.fullmatch(r"[0-9]{1,3}([.][0-9]*)?Y?", text):
        raise ConfigError(
            [f"by=age: {text[:20]!r} is no age in years; write whole years, or nothing if it is not known"]
        )
    return [BANDS[int(np.searchsorted(AGES, float(text.rstrip("Y")), side="right"))]]
