"""Every score within the images of one sex, view, age or finding, and where a generator is worse than elsewhere.

Generated images without labels are assigned to slices by a classifier that learned from the real images; real images
are then assigned in the same way, by a classifier that has not seen their patients, so that its errors are the same on
both sides: of a perfect generator the assigned images of both are equal in distribution, however wrong they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor

from callbacks.files import append_rows
from callbacks.version import code_version
from experiments.configuration.errors import ConfigError
from experiments.evaluation.assignment import AGREEMENT, Vectors, assign, number_of
from experiments.evaluation.attributes import Members, members, problems_of, strange_values
from experiments.evaluation.slices_found import Slice, Slices, corrected
from experiments.evaluation.slices_parts import Part, PartVectors
from experiments.measuring.image_sets import ImageSet
from experiments.measuring.resampling import Halves, halves, interval, together
from experiments.measuring.rows import Row, finished, verdict
from experiments.measuring.scoring import FEW_GROUPS, Scorer, Sets, described
from experiments.measuring.settings import Suite, Tools
from experiments.measuring.vectors import VectorCache, key_of
from lightning_modules.metrics.precision_recall import reached
from lightning_modules.metrics.score import Instrument, MemorisationScore

AT_MOST = 1_000  # images of each set in a slice: the work of some scores grows with the square
REPLICATES = 20  # halves at most; more would only make slices cost more than the whole
REACHED_OF = 5_000  # real images that are asked whether a generated one is near: as many as coverage takes


@dataclass(frozen=True)
class _Divided:
    """The slices by one attribute in each set; held-out images may be in none, for there may be no such set."""

    real: Members
    generated: Members
    held_out: Members | None
    agreement: Mapping[str, float]
    auc: Mapping[str, float]


class SliceScorer:
    """Measures slices.

    Args:
        sets: What is compared with what.
        vectors: Where vectors of these sets are.
        tools: Instruments and loaded extractors.
        suite: What is asked for.
        record: File of finished scores, as for ``Scorer``.
    """

    def __init__(self, sets: Sets, vectors: VectorCache, tools: Tools, suite: Suite, record: Path) -> None:
        self.sets, self.tools, self.suite, self.record = sets, tools, suite, record
        self.vectors = PartVectors(vectors, tools)
        self.replicates = min(suite.replicates, REPLICATES)

    def measure(self) -> Slices:
        """Return every score within every slice, and where it is worse than elsewhere."""
        found: list[Slice] = []
        for by in self.suite.attributes:
            true = members(self.sets.real.about, by)
            divided = self._divided(by, true)
            near = self._reached(true)
            found += [self._slice(divided, by, name, near[name]) for name in true.of]
        return corrected(found, self._how())

    def _how(self) -> str:
        if self.sets.generated.about:
            labels = self.suite.generated_labels
            whose = f"their labels ({labels})" if labels else "the labels of their sources"
            return f"Generated images belong to slices by {whose}."
        return (
            "Generated images have no labels: which slice they belong to was told by a classifier of the real images' "
            f"features ({', '.join(self.tools.extractors)}). Real images were told apart in the same way, by "
            'classifiers that had not seen their patients. Only "reached" goes by the labels of the real images.'
        )

    # Which images ---------------------------------------------------------------------------------------------------

    def _divided(self, by: str, true: Members) -> _Divided:
        names, generated, held_out = list(true.of), self.sets.generated, self.sets.held_out
        if generated.about:
            of_held_out = None if held_out is None else members(held_out.about, by, names)
            return _Divided(true, members(generated.about, by, names), of_held_out, {}, {})
        others = [generated]
        if held_out is not None and any(isinstance(one, MemorisationScore) for one in self.tools.scores.values()):
            others.append(held_out)
        real, *features = map(self._features, (self.sets.real, *others))
        count = len(real[0])
        assigned = assign(
            Members({name: of[:count] for name, of in true.of.items()}, true.known[:count]), real, features
        )
        of_sets = [
            _lengthened(of, len(images)) for of, images in zip(assigned.members, (self.sets.real, *others), strict=True)
        ]
        return _Divided(of_sets[0], of_sets[1], (*of_sets, None)[2], assigned.agreement, assigned.auc)

    def _features(self, images: ImageSet) -> Vectors:
        """Return the features by all extractors, side by side: one sees what another does not."""
        of_each = [self.vectors.computed(images, extractor) for extractor in self.tools.extractors.values()]
        count = min(map(len, of_each))
        return torch.cat([of[:count] for of in of_each], dim=1), images.groups[:count]

    # Scores ---------------------------------------------------------------------------------------------------------

    def _slice(self, divided: _Divided, by: str, name: str, near: Row) -> Slice:
        real, generated = (np.flatnonzero(of.of[name]) for of in (divided.real, divided.generated))
        part = Slice(by, name, real, generated, [], divided.agreement.get(name), divided.auc.get(name))
        groups = len({self.sets.real.groups[i] for i in real})
        if groups < FEW_GROUPS:
            few = f"{len(real)} real images of {groups} groups are too few: halves need {FEW_GROUPS} groups"
            return replace(part, refused=few)
        if part.agreement is not None and part.agreement < AGREEMENT:
            blind = (
                f"cannot be told apart: what a classifier takes for it agrees with the real images' labels by a kappa "
                f"of {part.agreement:.2f}, at least {AGREEMENT} is needed (area under the ROC curve {part.auc:.2f}); "
                "files of generated images with generated_labels=FILE need no classifier"
            )
            return replace(part, refused=blind, rows=[near])
        instruments = self.tools.scores
        of_pairs = {key: one for key, one in instruments.items() if one.unit == "pair"}
        of_images = {key: one for key, one in instruments.items() if one.unit != "pair"}
        rows = self._scored(divided, name, of_images, pairs=False) + self._scored(divided, name, of_pairs, pairs=True)
        order = list(instruments)
        return replace(
            part, rows=[self._share(divided, name), near, *sorted(rows, key=lambda row: order.index(row["score"]))]
        )

    def _scored(self, divided: _Divided, name: str, instruments: Mapping[str, Instrument], pairs: bool) -> list[Row]:
        """Return the scores of a slice, each with what it is elsewhere with as many images."""
        if not instruments:
            return []
        of_sets = [(self.sets.real, divided.real), (self.sets.generated, divided.generated)]
        if self.sets.held_out is not None and divided.held_out is not None:
            of_sets.append((self.sets.held_out, divided.held_out))
        inside = [_rows(of.of[name], pairs) for _, of in of_sets]
        outside = [_rows(of.rest(name), pairs) for _, of in of_sets]

        def scores(rows: Sequence[np.ndarray], sizes: Sequence[int]) -> list[Row]:
            real, generated, *held_out = (
                Part(images, of[:size] if pairs else chosen(of, images.groups, size))
                for (images, _), of, size in zip(of_sets, rows, sizes, strict=True)
            )
            judged = Sets(real, generated, self.sets.train, next((of for of in held_out if len(of)), None))
            names = self.replicates, self.suite.seed, self.record
            return Scorer(judged, self.vectors, self.tools.extractors, *names).measure(instruments)

        own = _sizes(inside)
        both = _sizes([min(pair, key=len) for pair in zip(inside, outside, strict=True)])
        rows = scores(inside, own)
        here = {row["name"]: row for row in (rows if both == own else scores(inside, both))}  # others may be fewer
        there = {row["name"]: row for row in scores(outside, both)}
        return [_compared(row, here.get(row["name"]), there.get(row["name"])) for row in rows]

    def _share(self, divided: _Divided, name: str) -> Row:
        """Return the share of the generated images that are the slice's; the floor is that of the real ones."""
        real, generated = (of.of[name][of.known] for of in (divided.real, divided.generated))
        groups, judged = (
            [group for group, known in zip(images.groups, of.known, strict=True) if known]
            for images, of in ((self.sets.real, divided.real), (self.sets.generated, divided.generated))
        )
        values, floors, differences = [], [], []
        for k in range(self.replicates):
            of_real, of_generated = self._halves(groups, judged, k)
            values.append(float(generated[of_generated.first].mean()))
            floors.append(float(real[of_real.second].mean()))
            differences.append(values[-1] - float(real[of_real.first].mean()))
        freedom = min(self.replicates, len(set(groups))) - 1
        row = _share_row("share", float(generated.mean()), (values, values, floors), freedom)
        row["fingerprint"] = {"metric": "share", "code_version": code_version(), "real": described(self.sets.real)}
        difference = row["value"] - float(real.mean())
        p = _probability(difference, np.array(differences), freedom, "higher")
        return {**row, "difference": difference, **({} if p is None else {"p": p})}

    def _reached(self, true: Members) -> dict[str, Row]:
        """Return for each slice the share of its real images that have a generated one nearby.

        It needs no slices of generated images: all of them are asked, and the real ones are those of the labels.
        """
        label, extractor = next(iter(self.tools.extractors.items()))
        real = self.vectors.computed(self.sets.real, extractor)[:REACHED_OF]
        generated = self.vectors.computed(self.sets.generated, extractor)[:REACHED_OF]
        fingerprint = {
            "metric": "reached",
            "code_version": code_version(),
            **extractor.identity(),
            "real": described(self.sets.real),
            "generated": len(generated),
            "replicates": self.replicates,
            "seed": self.suite.seed,
        }
        inside = {name: of[: len(real)] for name, of in true.of.items()}
        outside = {name: true.rest(name)[: len(real)] for name in inside}
        key = key_of(fingerprint, self.sets.generated.identity(), {name: of.tolist() for name, of in inside.items()})
        kept = finished(self.record).get(key)
        if kept is None:
            whole = reached(real, generated).numpy()
            groups = self.sets.real.groups[: len(real)]
            halved = [self._reached_of_half(real, groups, generated, k) for k in range(self.replicates)]
            kept = [_reached_row(whole, halved, groups, inside[name], outside[name]) for name in inside]
            common = {"name": f"reached_{label}", "extractor": label, "fingerprint": fingerprint}
            kept = [{**row, **common} for row in kept]
            append_rows(self.record, [{"key": key, "rows": kept}])
        return dict(zip(inside, kept, strict=True))

    def _reached_of_half(self, real: Tensor, groups: list[str], generated: Tensor, k: int) -> tuple[np.ndarray, ...]:
        """Return real images of a half, and which of them are reached, as by a half of the others at the floor's size.

        Returns:
            Their rows (N,), and bool (N,): reached by half of the generated images, by as many of these as the floor
            has images, by the other half of the real ones.
        """
        of_real, of_generated = self._halves(groups, self.sets.generated.groups[: len(generated)], k)
        here, judged, there = real[of_real.first], generated[of_generated.first], real[of_real.second]
        size = min(len(there), len(judged))
        by_half = reached(here, judged).numpy()
        by_as_many = by_half if size == len(judged) else reached(here, judged[:size]).numpy()
        return of_real.first, by_half, by_as_many, reached(here, there[:size]).numpy()

    def _halves(self, groups: Sequence[str], of_generated: Sequence[str], k: int) -> tuple[Halves, Halves]:
        return halves(groups, self.suite.seed, k), halves(together(of_generated), self.suite.seed, k)


def check_slices(suite: Suite, tools: Tools, sets: Sets) -> list[str]:
    """Refuse what slices cannot be made by, before anything is computed.

    Returns:
        What the user has to know of the labels.

    Raises:
        ConfigError: With every attribute that cannot be used.
    """
    wanted, real, generated = suite.attributes, sets.real.about, sets.generated.about
    where = "" if real else "; groups=FILE tells, in columns beside file and group"
    problems = problems_of(wanted, real, "real images", where)
    if generated and not problems:
        where = f" in generated_labels={suite.generated_labels}"
        problems = problems_of(wanted, generated, "generated images", where)
    said = []
    for by in wanted if generated and not problems else ():
        slices = members(real, by)
        strange = strange_values(by, slices.of, generated)
        if strange and not any(of.any() for of in members(generated, by, list(slices.of)).of.values()):
            words = f"real images say {', '.join(slices.of)}, generated images {strange}"
            problems.append(f"by={by}: no generated image has a value of the real ones ({words}){where}")
        elif strange:
            said.append(f"by={by}: values that no real image has count as elsewhere{where}: {strange}")
    if sets.held_out is not None and generated and not problems:
        try:
            for by in wanted:
                members(sets.held_out.about, by)
        except ConfigError as error:
            problems += [f"{problem} (held-out images)" for problem in error.problems]
    if not tools.extractors:
        problems.append("by: slices need features of the images; add an extractor to the suite")
    if problems:
        raise ConfigError(problems)
    return said


def chosen(rows: np.ndarray, groups: Sequence[str], count: int) -> np.ndarray:
    """Return so many of some rows, ascending, whole groups at a time but the last; a function of the groups' names."""
    if len(rows) <= count:
        return rows
    of = np.array([number_of(groups[i]) for i in rows], dtype=np.uint64)
    return np.sort(rows[np.argsort(of, kind="stable")[:count]])


def _rows(belongs: np.ndarray, pairs: bool) -> np.ndarray:
    """Return rows of images that belong to a slice, or of pairs 2i, 2i + 1 of which both do."""
    if pairs:
        even = belongs[: len(belongs) // 2 * 2]
        belongs = np.repeat(even[::2] & even[1::2], 2)
    return np.flatnonzero(belongs)


def _sizes(rows: Sequence[np.ndarray]) -> list[int]:
    """Return how many real, generated and held-out images are taken: no more generated than real ones."""
    real, generated, *held_out = (min(len(of), AT_MOST) for of in rows)
    return [real, min(real, generated), *held_out]


def _lengthened(of: Members, size: int) -> Members:
    """Return slices of a set of which only the first images were told apart."""
    more = (0, size - len(of.known))
    return Members({name: np.pad(one, more) for name, one in of.of.items()}, np.pad(of.known, more))


def _compared(row: Row, here: Row | None, there: Row | None) -> Row:
    """Return a score with what it is elsewhere, and the probability of being that much worse by chance.

    How far a value lies from its floor is compared with the same elsewhere, at one number of images: fewer images make
    many scores worse, but their floors as well. A score without a good side is compared in both directions.

    Args:
        row: The score in the slice.
        here: The same of as many images as there are elsewhere; None = it was refused.
        there: The same elsewhere; None = it was refused.
    """
    if here is None or there is None or not all("low" in one for one in (row, here, there)):
        return row
    elsewhere = there["at_floor_size"] - there["floor"]
    difference = here["at_floor_size"] - here["floor"] - elsewhere
    of_halves = np.subtract(here["beyond_floor"], there["beyond_floor"])
    p = _probability(difference, of_halves, min(here["freedom"], there["freedom"]), row["better"])
    if p is not None and row["better"] == "as real" and abs(difference + elsewhere) <= abs(elsewhere):
        p = 1.0  # nearer to its floor than elsewhere
    found = {"elsewhere": [there["at_floor_size"], there["floor"]], "difference": difference}
    return {**row, **found, **({} if p is None else {"p": p})}


def _probability(difference: float, of_halves: np.ndarray, freedom: int, better: str) -> float | None:
    """Return how probable it is to be that much worse by chance; None = halves say nothing of it."""
    spread = float(np.std(of_halves, ddof=1))
    if spread == 0:
        return 1.0 if difference == 0 else None
    if better == "as real":
        return 2.0 * float(student_t.sf(abs(difference) / spread, freedom))
    return float(student_t.sf((difference if better == "lower" else -difference) / spread, freedom))


def _reached_row(
    whole: np.ndarray, halved: list[tuple[np.ndarray, ...]], groups: list[str], inside: np.ndarray, outside: np.ndarray
) -> Row:
    """Return the share of a slice's real images that are reached, beside that of the others."""
    if not inside.any():
        return {**_share_row("reached", None, ([], [], []), 0), "refused": "no image of it is among those asked"}
    few = min(len({groups[i] for i in np.flatnonzero(of)}) for of in (inside, outside))
    empty = any(not of[rows].any() for rows, *_ in halved for of in (inside, outside))
    if empty or few < FEW_GROUPS:
        return _share_row("reached", float(whole[inside].mean()), ([], [], []), 0)
    rows = []
    for of in (inside, outside):
        values = tuple([float(one[i][of[one[0]]].mean()) for one in halved] for i in (1, 2, 3))
        rows.append(_share_row("reached", float(whole[of].mean()), values, min(len(halved), few) - 1))
    return _compared(rows[0], rows[0], rows[1])


def _share_row(name: str, value: float | None, halved: tuple[list[float], ...], freedom: int) -> Row:
    """Return a share as ``Scorer`` returns a score.

    Args:
        name: Its name.
        value: Of all images.
        halved: Of halves, of halves at the floor's size, floors; empty = it has no interval.
        freedom: Degrees of freedom.
    """
    row: Row = {"name": name, "score": name, "extractor": "", "value": value, "better": "higher", "warnings": []}
    of_halves, at_size, floors = halved
    if value is None or not floors:
        return row
    low, high = (float(end) for end in np.clip(interval(value, of_halves, freedom), 0.0, 1.0))
    floor_low, floor_high = (float(end) for end in np.quantile(floors, (0.025, 0.975)))
    row |= {"replicates": of_halves, "freedom": freedom, "low": low, "high": high}
    row |= {"floor": float(np.mean(floors)), "floor_low": floor_low, "floor_high": floor_high}
    row["at_floor_size"], row["beyond_floor"] = float(np.mean(at_size)), np.subtract(of_halves, floors).tolist()
    return {**row, "verdict": verdict(row)}
