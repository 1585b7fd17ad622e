"""What was found in slices, told in sentences, corrected for how much was tested."""

from dataclasses import dataclass, replace

import numpy as np

from experiments.evaluation.comparison import SIGNIFICANT, holm
from experiments.measuring.rows import Row, is_bad


@dataclass(frozen=True)
class Slice:
    """The images of one slice.

    Attributes:
        by: The attribute.
        name: Its value.
        real: Which real images belong to it.
        generated: Which generated images belong to it.
        rows: Its scores, as ``Scorer`` gives them, with what was found elsewhere: "elsewhere" (value and middle of the
            floor), "difference" (of how far both lie from their floors), "p" (one-sided, Holm's) and "worse".
        agreement: Cohen's kappa of the classifier with the labels; None = images are labelled.
        auc: The area under its ROC curve.
        refused: Why it has no scores that need generated images of the slice; "" = it has.
    """

    by: str
    name: str
    real: np.ndarray
    generated: np.ndarray
    rows: list[Row]
    agreement: float | None
    auc: float | None
    refused: str = ""

    @property
    def title(self) -> str:
        """Attribute and value."""
        return f"{self.by} {self.name}"


@dataclass(frozen=True)
class Slices:
    """What was found in slices.

    Attributes:
        found: All slices, in order.
        how: How images were assigned to them, in a sentence.
        tests: Differences that were tested.
    """

    found: list[Slice]
    how: str
    tests: int

    @property
    def worse(self) -> list[tuple[Slice, Row]]:
        """The scores that are worse in a slice than elsewhere, by more than chance, the surest first."""
        pairs = [(part, row) for part in self.found for row in part.rows if row.get("worse")]
        return sorted(pairs, key=lambda pair: float(pair[1]["p"]))


def slice_lines(slices: Slices) -> list[str]:
    """Return in lines of text where the generator is worse than elsewhere, and what could not be told."""
    lines = [f"slice {part.title}: {part.refused}" for part in slices.found if part.refused]
    lines += [f"worse than elsewhere: {sentence(part, row)}" for part, row in slices.worse]
    return lines if slices.worse else [*lines, nothing_worse(slices)]


def nothing_worse(slices: Slices) -> str:
    """Say that no slice is worse than elsewhere, or that it could not be told."""
    if not slices.tests:
        return "whether a slice is worse than elsewhere could not be told: no difference could be tested"
    return f"no slice is worse than elsewhere by more than chance ({slices.tests} differences tested)"


def sentence(part: Slice, row: Row) -> str:
    """Say in what a slice is worse than elsewhere."""
    if "elsewhere" not in row:
        return (
            f"{part.title}: {row['value']:.1%} of the generated images, {row['value'] - row['difference']:.1%} of the "
            f"real ones (p = {row['p']:.2g})"
        )
    value, floor = row["elsewhere"]
    return (
        f"{part.title}: {row['name'].replace('_', ' ')} {row['at_floor_size']:.4g} (real images {row['floor']:.4g}), "
        f"elsewhere {value:.4g} ({floor:.4g}) (p = {row['p']:.2g})"
    )


def corrected(found: list[Slice], how: str) -> Slices:
    """Return the slices with Holm's probabilities over all scores and slices; what is worse lies beyond its floor."""
    p = [row["p"] for part in found for row in part.rows if "p" in row]
    adjusted = iter(holm(p))
    parts = []
    for part in found:
        rows = [{**row, "p": next(adjusted)} if "p" in row else row for row in part.rows]
        rows = [{**row, "worse": is_bad(row) and row["p"] < SIGNIFICANT} if "p" in row else row for row in rows]
        parts.append(replace(part, rows=rows))
    return Slices(parts, how, len(p))
