"""Scores with what belongs to them: interval, floor, fingerprint, and a word on too few images."""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from callbacks.files import append_rows
from callbacks.version import code_version
from experiments.measuring.image_sets import ImageSet
from experiments.measuring.resampling import halves, interval, together
from experiments.measuring.rows import Row, finished, verdict
from experiments.measuring.vectors import VectorCache, key_of
from experiments.record.run_directory import versions
from lightning_modules.metrics.features import FeatureExtractor
from lightning_modules.metrics.score import DistributionScore, Instrument, MemorisationScore, TooFewImagesError

log = logging.getLogger(__name__)

FEW_GROUPS = 8  # patients below which halves say nothing of their spread
OF_INCEPTION = {"frechet": "fid", "frechet_infinity": "fid_infinity", "kernel_distance": "kid"}


@dataclass(frozen=True)
class Sets:
    """What is compared with what.

    Attributes:
        real: The real images that the generated ones are compared with.
        generated: The images that are judged; no more than ``real`` has.
        train: All images that the generator was trained on; None = not known.
        held_out: Real images of other patients; None = there are none.
        warnings: What the user has to know of them before any score is taken, without names of files.
    """

    real: ImageSet
    generated: ImageSet
    train: ImageSet | None
    held_out: ImageSet | None
    warnings: tuple[str, ...] = ()


class _Prepared(NamedTuple):
    """What an instrument is called with: real and generated vectors, and the groups of both."""

    measure: Callable[[Tensor, Tensor], dict[str, float]]
    real: Tensor
    groups: list[str]
    generated: Tensor
    of_generated: list[str]
    rows: list[int]  # which generated images these are; of a pair its first


class _Resampled(NamedTuple):
    """Values on halves; every list has one entry per replicate, or none if there is no fair way to halve."""

    halves: list[dict[str, float]]  # half of the real and half of the generated images
    at_floor_size: list[dict[str, float]]  # the same with as many generated images as the floor has real ones
    floors: list[dict[str, float]]  # one half of the real images against the other
    warning: str  # why there are none, or nothing


class Scorer:
    """Measures sets of images with instruments.

    Args:
        sets: The images.
        vectors: Where vectors come from.
        extractors: Loaded feature extractors by name.
        replicates: Halves that intervals and floors are made of.
        seed: Names the halves.
        record: File of finished scores: what is in it is not measured again, what is new is added.
    """

    def __init__(
        self,
        sets: Sets,
        vectors: VectorCache,
        extractors: Mapping[str, FeatureExtractor],
        replicates: int,
        seed: int,
        record: Path,
    ) -> None:
        self.sets, self.vectors, self.extractors = sets, vectors, extractors
        self.replicates, self.seed, self.record = replicates, seed, record

    def measure(self, instruments: Mapping[str, Instrument]) -> list[Row]:
        """Return one row for every number of every instrument; what cannot be measured says why."""
        pairs = [
            (name, instrument, label, extractor)
            for name, instrument in instruments.items()
            for label, extractor in self._read_by(instrument).items()
        ]
        self.compute_vectors(list(instruments.values()))
        rows: list[Row] = []
        done, commit = finished(self.record), versions()["git_commit"]
        with tqdm(total=len(pairs) * (1 + self.replicates), desc="scores", disable=None, leave=False) as bar:
            for name, instrument, label, extractor in pairs:
                bar.set_postfix_str(f"{name} {label}")
                fingerprint = self.fingerprint(instrument, extractor)
                key = key_of(name, label, fingerprint, self.sets.generated.identity(), commit)
                if key not in done:
                    done[key] = self._rows(name, instrument, label, extractor, fingerprint, bar)
                    append_rows(self.record, [{"key": key, "rows": done[key]}])
                rows += done[key]
        return _with_different_names(rows)

    def values(self, instruments: Mapping[str, Instrument], kept: Tensor) -> dict[str, float]:
        """Return every number for some of the generated images, without intervals; what is refused is left out.

        Args:
            instruments: The instruments.
            kept: Which generated images (N,), bool.
        """
        found: dict[str, float] = {}
        for instrument in instruments.values():
            for label, extractor in self._read_by(instrument).items():
                with suppress(ValueError):
                    prepared = self._prepared(instrument, extractor)
                    rows = torch.tensor(prepared.rows, dtype=torch.long)
                    whole = kept[rows] & kept[rows + 1] if instrument.unit == "pair" else kept[rows]
                    measured = prepared.measure(prepared.real, prepared.generated[whole])
                    found |= {title(name, extractor, label): value for name, value in measured.items()}
        return found

    def _read_by(self, instrument: Instrument) -> Mapping[str, FeatureExtractor]:
        return {"": instrument.reads} if instrument.reads is not None else self.extractors

    def compute_vectors(
        self, instruments: Sequence[Instrument], also: FeatureExtractor | None = None
    ) -> list[ImageSet]:
        """Go through each set that instruments read, once for all; from then on the vectors are there.

        Args:
            instruments: Those of the suite.
            also: What else reads every image of these sets.

        Returns:
            These sets.
        """
        of_all = [one for one in instruments if isinstance(one, DistributionScore)]
        of_copies = [one for one in instruments if not isinstance(one, DistributionScore)]
        read: list[ImageSet] = []
        for images, title, users in (
            (self.sets.real, "real images", of_all),
            (self.sets.generated, "generated images", instruments),
            (self.sets.train, "training images", of_copies),
            (self.sets.held_out, "held-out images", of_copies),
        ):
            if images is not None and len(images) and users:
                whole = images is self.sets.train
                wanted: dict[str, tuple[FeatureExtractor, int]] = {}
                if also is not None:
                    wanted[key_of(also.identity())] = also, len(images)
                for user in users:
                    count = len(images) if whole or user.at_most is None else min(user.at_most, len(images))
                    for extractor in self._read_by(user).values():
                        key = key_of(extractor.identity())
                        wanted[key] = extractor, max(count, wanted.get(key, (extractor, 0))[1])
                with suppress(ValueError):  # whatever an extractor refuses becomes the row of those that need it
                    self.vectors.compute(images, list(wanted.values()), title)
                read.append(images)
        return read

    def _rows(
        self,
        name: str,
        instrument: Instrument,
        label: str,
        extractor: FeatureExtractor,
        fingerprint: Row,
        bar: tqdm,
    ) -> list[Row]:
        common = {"score": name, "extractor": label, "better": instrument.better, "fingerprint": fingerprint}
        try:
            prepared = self._prepared(instrument, extractor)
            measured = prepared.measure(prepared.real, prepared.generated)
        except ValueError as error:  # too few images, or images of which the score says nothing
            bar.update(1 + self.replicates)
            return [{**common, "name": title(name, extractor, label), "value": None, "refused": str(error)}]
        bar.update()
        resampled = self._resampled(instrument, prepared, bar)
        warnings = [*_too_few(instrument, prepared), *([resampled.warning] if resampled.warning else [])]
        if isinstance(instrument, DistributionScore):
            warnings += instrument.warnings(prepared.real, prepared.generated)
        rows = []
        for value_name, value in measured.items():
            row = {**common, "name": title(value_name, extractor, label), "value": value, "warnings": warnings}
            if resampled.floors:
                of_halves, at_size, of_floor = ([one[value_name] for one in part] for part in resampled[:3])
                row["replicates"], row["freedom"] = of_halves, min(len(of_halves), len(set(prepared.groups))) - 1
                row["low"], row["high"] = _interval(row, instrument, prepared)
                row["floor"], row["at_floor_size"] = float(np.mean(of_floor)), float(np.mean(at_size))
                row["floor_low"], row["floor_high"] = (float(q) for q in np.quantile(of_floor, (0.025, 0.975)))
                row["beyond_floor"] = np.subtract(of_halves, of_floor).tolist()
                row["verdict"] = verdict(row)
            rows.append(row)
        return rows

    def _resampled(self, instrument: Instrument, prepared: _Prepared, bar: tqdm) -> _Resampled:
        measure, real, groups, generated, of_generated, _ = prepared
        count = len(set(groups))
        if count < FEW_GROUPS:
            bar.update(self.replicates)
            what = "groups of real images" if instrument.unit == "image" else "pairs of real images of different groups"
            return _Resampled([], [], [], f"no interval and no floor: {count} {what} are too few to halve")
        found = _Resampled([], [], [], "")
        each = together(of_generated)
        for k in range(self.replicates):
            of_real, judged_half = halves(groups, self.seed, k), halves(each, self.seed, k)
            here, there = real[of_real.first], real[of_real.second]
            judged = generated[judged_half.first]
            size = min(len(there), len(judged))
            try:
                found.halves.append(measure(here, judged))
                same = size == len(judged)
                found.at_floor_size.append(found.halves[-1] if same else measure(here, judged[:size]))
                found.floors.append(measure(here, there[:size]))
            except ValueError as error:
                bar.update(self.replicates - k)
                return _Resampled([], [], [], f"no interval and no floor: {error}")
            bar.update()
        return found

    def _prepared(self, instrument: Instrument, extractor: FeatureExtractor) -> _Prepared:
        generated, of_generated = self._of(self.sets.generated, extractor, instrument.at_most)
        rows = list(range(len(generated)))
        if isinstance(instrument, MemorisationScore):
            if self.sets.train is None or self.sets.held_out is None or not len(self.sets.held_out):
                raise TooFewImagesError("needs training images and held-out real images, and there are none")
            train, _ = self._of(self.sets.train, extractor, None)
            real, groups = self._of(self.sets.held_out, extractor, instrument.at_most)
            return _Prepared(partial(instrument.measure, train), real, groups, generated, of_generated, rows)
        assert isinstance(instrument, DistributionScore)
        real, groups = self._of(self.sets.real, extractor, instrument.at_most)
        if instrument.unit == "pair":
            chosen, rows = _pairs(groups), _pairs(of_generated)
        elif instrument.one_per_group:
            chosen, rows = _firsts(groups), _firsts(of_generated)
            rows = rows[: len(chosen)]
        else:
            return _Prepared(instrument.measure, real, groups, generated, of_generated, rows)
        real, groups = real[chosen], [groups[i] for i in chosen]
        return _Prepared(instrument.measure, real, groups, generated[rows], [of_generated[i] for i in rows], rows)

    def _of(self, images: ImageSet, extractor: FeatureExtractor, at_most: int | None) -> tuple[Tensor, list[str]]:
        """Return vectors and groups of the first images of a set, whose order is mixed."""
        vectors = self.vectors.vectors(images, extractor, at_most)
        return vectors, images.groups[: len(vectors)]

    def fingerprint(self, instrument: Instrument, extractor: FeatureExtractor) -> Row:
        """Return what two scores must share to be compared."""
        memorisation = not isinstance(instrument, DistributionScore)
        real = {"train": self.sets.train, "held_out": self.sets.held_out} if memorisation else {"real": self.sets.real}
        generated = min(len(self.sets.generated), instrument.at_most or len(self.sets.generated))
        if instrument.one_per_group:
            generated = min(generated, len(set(self.sets.real.groups[: instrument.at_most])))
        return {
            "metric": type(instrument).__name__,
            "arguments": arguments_of(instrument),
            "code_version": code_version(),
            **instrument.depends_on,
            **extractor.identity(),
            **{key: None if images is None else described(images) for key, images in real.items()},
            "generated": generated,
            "at_most": instrument.at_most,
            "one_per_group": instrument.one_per_group,
            "resolution": list(self.sets.generated.size),
            "generated_size": list(self.sets.generated.own_size),
            "dtype": "float32 vectors, float64 statistics",
            "device": self.vectors.device.type,
            "replicates": self.replicates,
            "seed": self.seed,
        }


def described(images: ImageSet) -> Row:
    """Return the identity of real images, and a hash of which belong together, whatever their groups are called."""
    number = {group: i for i, group in enumerate(dict.fromkeys(images.groups))}
    return {**images.identity(), "groups": key_of([number[group] for group in images.groups])}


def _interval(row: Row, instrument: Instrument, prepared: _Prepared) -> tuple[float, float]:
    """Return the interval of a score, within its bounds.

    A share of 0 or 1 is the same in every half, and still is not certain: the rule of three says how far it may be off
    (Hanley and Lippman-Hand 1983, JAMA 249:1743).
    """
    (lowest, highest), value = instrument.bounds, row["value"]
    low, high = (float(end) for end in np.clip(interval(value, row["replicates"], row["freedom"]), lowest, highest))
    if low == high and (lowest, highest) == (0.0, 1.0):
        third = 3.0 / len(prepared.generated)
        low, high = max(lowest, low - third), min(highest, high + third)
    return low, high


def _too_few(instrument: Instrument, prepared: _Prepared) -> list[str]:
    found, enough = min(len(prepared.real), len(prepared.generated)), instrument.enough(prepared.real.shape[1])
    few = f"{found} {instrument.unit}s are few: from about {enough} on the value is steady"
    return [few] if found < enough else []


def _pairs(groups: Sequence[str]) -> list[int]:
    """Return the first places 2i of pairs (2i, 2i + 1) of two groups that are in no pair before."""
    taken: set[str] = set()
    found = []
    for i in range(0, len(groups) - 1, 2):
        pair = {groups[i], groups[i + 1]}
        if len(pair) == 2 and not pair & taken:
            found.append(i)
            taken |= pair
    return found


def _firsts(groups: Sequence[str]) -> list[int]:
    """Return the place of the first of each group, ascending."""
    return sorted({group: i for i, group in reversed(list(enumerate(groups)))}.values())


def _with_different_names(rows: list[Row]) -> list[Row]:
    """Add the suite's name of a score to names that occur twice, as of one instrument with two settings."""
    names = [row["name"] for row in rows]
    twice = {name for name in names if names.count(name) > 1}
    return [{**row, "name": f"{row['name']}_{row['score']}"} if row["name"] in twice else row for row in rows]


def title(value: str, extractor: FeatureExtractor, label: str) -> str:
    """Return the name of a number: only Inception-v3's with the reference weights are called FID and KID."""
    if extractor.score_name == "fid" and extractor.identity()["precision"] == "float32" and value in OF_INCEPTION:
        return OF_INCEPTION[value]
    return f"{value}_{label}" if label else value


def arguments_of(instrument: Instrument) -> Row:
    """Return the plain arguments that an instrument was made with."""
    names = inspect.signature(type(instrument)).parameters
    values = {name: getattr(instrument, name, None) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, int | float | str | bool | dict)}
