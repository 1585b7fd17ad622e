"""A score as a row: what it holds, and where it lies beside its floor."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiments.measuring.resampling import interval

FLOOR = ("floor", "floor_low", "floor_high", "at_floor_size")
Row = dict[str, Any]


def verdict(row: Row) -> str:
    """Say where a score lies beside its floor, both of half the images.

    To be outside it must be beyond the floor's ends, and further from the floor's middle than chance takes it. The ends
    alone are too near: the halves of a floor are two parts of one set, what one has more of the other has less of, and
    a score to which both add (in a Frechet distance of few images their spread) hardly varies. Sets of other patients
    do vary. Both the score and its floor do: where real images are but what generated ones are compared with
    (authenticity), half of the variance is the floor's. Score less floor varies over halves as it does over data.

    Better than the floor is no praise: images that repeat the real ones are nearer to them than other patients are.
    """
    value, low, high = row["at_floor_size"], row["floor_low"], row["floor_high"]
    least, most = interval(value - row["floor"], row["beyond_floor"], row["freedom"])
    if low <= value <= high or least <= 0.0 <= most:
        return "within the floor"
    if row["better"] == "as real":
        return "outside the floor"
    return "better than the floor" if (value < low) == (row["better"] == "lower") else "worse than the floor"


def is_bad(row: Row) -> bool:
    """Tell whether a score lies where no score of real images does, on the bad side."""
    return row.get("verdict") in ("worse than the floor", "outside the floor")


def in_half_widths(row: Row, value: float) -> float:
    """Return how far a value lies from the middle of the floor, in half-widths of the floor; worse is positive."""
    half = (row["floor_high"] - row["floor_low"]) / 2.0
    distance = value - (row["floor_high"] + row["floor_low"]) / 2.0
    if half == 0:
        distance = 0.0 if distance == 0 else math.copysign(math.inf, distance)
    else:
        distance /= half
    return {"lower": distance, "higher": -distance, "as real": abs(distance)}[row["better"]]


def check_row(row: Any) -> None:
    """Check what is used of a score: a file may be damaged, or a stranger's.

    Raises:
        ValueError: If something is missing or of another kind. KeyError and TypeError likewise.
    """
    numbers = [row[key] for key in ("low", "high", "freedom", *FLOOR) if key in row]
    numbers += [*row.get("replicates", []), *row.get("beyond_floor", [])]
    if row["value"] is not None:
        numbers.append(row["value"])
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        raise ValueError("a score is no number")
    if "low" in row and not all(key in row for key in ("high", "freedom", "replicates", "verdict", *FLOOR)):
        raise ValueError("an interval or a floor is not whole")
    if row["better"] not in ("lower", "higher", "as real") or not isinstance(row["fingerprint"], dict):
        raise ValueError("a score has no fingerprint")
    if not isinstance(row.get("warnings", []), list) or not all(isinstance(row[key], str) for key in ("name", "score")):
        raise ValueError("a score has no name")


def finished(path: Path) -> dict[str, list[Row]]:
    """Return the rows that an interrupted evaluation has finished; a line that a kill cut off counts for nothing."""
    done: dict[str, list[Row]] = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                found = json.loads(line)
                for row in found["rows"]:
                    check_row(row)
                done[str(found["key"])] = found["rows"]
    return done
