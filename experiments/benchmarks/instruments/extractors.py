"""Which extractor sees which failure? ``python -m experiments.benchmarks.instruments.extractors EXPERIMENT``.

The images of an experiment's data are halved at random by groups (patients, blocks of slices). Something is done to one
half that generators do, and its Frechet distance to the other half is taken, as a multiple of the largest distance that
two halves of real images had: above 1 lies what real images never got. Further extractors are named as in a suite.
Vectors lie in the image cache, finished columns in the folder: the same command goes on.

``--halves N`` asks instead how often a perfect generator would be called bad: one half of the real images plays it, N
times, and is measured against the other half as ``experiments.evaluate`` does.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from callbacks.files import append_rows
from datamodules.base import ImageDataModule
from experiments.benchmarks.instruments.planted_failures import BLUR, COLLAPSE, COPIES, SHIFT, Planted
from experiments.benchmarks.instruments.tables import finished, publish
from experiments.cli import log_to_terminal
from experiments.configuration import files
from experiments.configuration.experiment import experiment_of
from experiments.evaluation.slices_parts import Part
from experiments.measuring.image_sets import ImageSet, RealImages
from experiments.measuring.resampling import halves
from experiments.measuring.rows import Row, in_half_widths, is_bad
from experiments.measuring.scoring import Scorer, Sets
from experiments.measuring.settings import build_tools, load_suite
from experiments.measuring.vectors import VectorCache, key_of
from experiments.record.loading import data_of
from lightning_modules.metrics.efficientnet import EfficientNetLite0
from lightning_modules.metrics.features import FeatureExtractor, RandomConvNet
from lightning_modules.metrics.frechet import Frechet, frechet_distance_of

FLOORS, MEASURED = 12, 3  # pairs of halves of real images, and those of them into which failures are planted
REPLICATES = 20  # as in the suite quick, whose floors are known least
SEED = 1
REAL = "nothing"
NOISE, SPECKLE, WARP = 0.05, 0.3, 2.0  # of [-1, 1]; of the grey level; pixels
SMOOTH = 8  # pixels over which a warp turns, and side of the patches that are shuffled
BODY = -0.9  # what is brighter belongs to the body
RARE = 0.1  # share of the images below which nobody misses a class

Change = Callable[[Tensor, int], Tensor]


# Failures -------------------------------------------------------------------------------------------------------------


def _random(i: int) -> torch.Generator:
    return torch.Generator().manual_seed(i)


def blurred(sigma: float) -> Change:
    """Return a blur with a Gaussian of so many pixels."""
    return lambda image, i: gaussian_blur(image, [5, 5], [sigma, sigma])


def noisy(image: Tensor, i: int) -> Tensor:
    """Add white noise."""
    return image + NOISE * torch.randn(image.shape, generator=_random(i))


def speckled(image: Tensor, i: int) -> Tensor:
    """Multiply a tenth of the body's pixels with noise."""
    random = _random(i)
    noise = 1.0 + SPECKLE * torch.randn(image.shape, generator=random)
    chosen = (image > BODY) & (torch.rand(image.shape, generator=random) < 0.1)
    return torch.where(chosen, (image + 1.0) * noise - 1.0, image)


def shuffled(image: Tensor, i: int) -> Tensor:
    """Permute patches of the detail inside the body; what is coarser than half a patch stays where it is."""
    coarse = gaussian_blur(image, [2 * SMOOTH + 1] * 2, [SMOOTH / 2.0] * 2)
    patches = F.unfold((image - coarse)[None], SMOOTH, stride=SMOOTH)[0].T  # a row each
    body = F.unfold(image[None], SMOOTH, stride=SMOOTH)[0].T.amin(dim=1) > BODY
    inside = body.nonzero()[:, 0]
    patches[inside] = patches[inside[torch.randperm(len(inside), generator=_random(i))]]
    return coarse + F.fold(patches.T[None], tuple(image.shape[1:]), SMOOTH, stride=SMOOTH)[0]


def warped(image: Tensor, i: int) -> Tensor:
    """Move pixels by a smooth random field, ``WARP`` pixels in the root mean square."""
    height, width = image.shape[1:]
    coarse = torch.randn(1, 2, height // SMOOTH + 1, width // SMOOTH + 1, generator=_random(i))
    field = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0]
    field *= WARP / field.square().sum(dim=0).mean().sqrt()
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x = (2.0 * (columns + field[0]) + 1.0) / width - 1.0
    y = (2.0 * (rows + field[1]) + 1.0) / height - 1.0
    grid = torch.stack([x, y], dim=-1)[None]
    # Bicubic: what is interpolated linearly is blurred as well.
    return F.grid_sample(image[None], grid, mode="bicubic", padding_mode="border", align_corners=False)[0]


CHANGES: dict[str, Change] = {
    "blur, 0.5 pixels": blurred(0.5),
    f"blur, {BLUR:g} pixels": blurred(BLUR),
    "white noise, 2.5 % of the range": noisy,
    "speckle on a tenth of the body": speckled,
    "brighter by 5 % of the range": lambda image, i: image + SHIFT,
    "organs shuffled": shuffled,
    "warp of 2 pixels": warped,
}


@dataclass(frozen=True)
class Selection:
    """A failure that is a choice of images.

    Attributes:
        rows: Chooses, given the rows of the half that is judged and those of the other.
        share: How many images it leaves, of the half: fewer images are farther from everything.
    """

    rows: Callable[[np.ndarray, np.ndarray], np.ndarray]
    share: float = 1.0


def _kept(kept: np.ndarray, judged: np.ndarray, other: np.ndarray) -> np.ndarray:
    return judged[kept[judged]]


def _first(share: float, judged: np.ndarray, other: np.ndarray) -> np.ndarray:
    return judged[: round(share * len(judged))]


def selections(classes: Sequence[tuple[str, ...]]) -> dict[str, Selection]:
    """Return collapse, copies of the other half, and each class that is not rare missing.

    Args:
        classes: Of each image.
    """

    def collapsed(judged: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.resize(judged[: max(1, int(COLLAPSE * len(judged)))], len(judged))

    def copied(judged: np.ndarray, other: np.ndarray) -> np.ndarray:
        count = int(COPIES * len(judged))
        return np.concatenate([other[:count], judged[count:]])

    found = {"collapse onto a tenth": Selection(collapsed), f"{COPIES:.0%} copies of the other half": Selection(copied)}
    for name in sorted({name for of in classes for name in of}):
        without = np.array([name not in of for of in classes])
        if RARE <= 1.0 - without.mean() <= 1.0 - RARE:
            title = f"no {name} ({1.0 - without.mean():.0%} of the images)"
            found[title] = Selection(partial(_kept, without), float(without.mean()))
    return found


# Extractors -----------------------------------------------------------------------------------------------------------


class Stages(EfficientNetLite0):
    """Means of the channels of three middle stages, their standard deviations, and the usual features."""

    MIDDLE = (1, 2, 4)  # of seven, the first being 0: 24, 40 and 112 channels
    MEANS = 24 + 40 + 112
    dimensions = 2 * MEANS + EfficientNetLite0.dimensions

    def identity(self) -> dict[str, str]:
        """Return name, weights' hash and preprocessing."""
        return {**super().identity(), "extractor": f"efficientnet_lite0, stages {self.MIDDLE} and the last layer"}

    def pooled(self, x: Tensor) -> Tensor:
        """Pool the stages too."""
        assert self.network is not None
        stem, activation, stages, *head = self.network.children()
        x = activation(stem(x))
        middle = []
        for i, stage in enumerate(stages.children()):
            x = stage(x)
            if i in self.MIDDLE:
                middle.append(x)
        for layer in head:
            x = layer(x)
        means = [layer.mean(dim=(2, 3)) for layer in (*middle, x)]
        deviations = [layer.std(dim=(2, 3), correction=0) for layer in middle]
        return torch.cat([*means[:-1], *deviations, means[-1]], dim=1)


@dataclass(frozen=True)
class Candidate:
    """An extractor, or some of its features.

    Attributes:
        extractor: The extractor.
        columns: The features that are taken.
    """

    extractor: FeatureExtractor
    columns: tuple[slice, ...] = (slice(None),)

    def load(self) -> None:
        """Make the extractor ready."""
        self.extractor.prepare()
        self.extractor.load()
        self.extractor.eval().requires_grad_(False)

    def taken(self, vectors: Tensor) -> Tensor:
        """Return the features that are taken of vectors (N, D)."""
        return torch.cat([vectors[:, columns] for columns in self.columns], dim=1)


def candidates() -> dict[str, Candidate]:
    """Return what needs no weights of the user's."""
    stages, head = Stages(64), slice(2 * Stages.MEANS, None)
    return {
        "random": Candidate(RandomConvNet()),
        "head, 64": Candidate(stages, (head,)),
        "means, 64": Candidate(stages, (slice(Stages.MEANS), head)),
        "means + stds, 64": Candidate(stages),
        "head, 32": Candidate(EfficientNetLite0(32)),
        "head, 96": Candidate(EfficientNetLite0(96)),
        "head, 128": Candidate(EfficientNetLite0(128)),
        "head, 224": Candidate(EfficientNetLite0(224)),
    }


# Measuring ------------------------------------------------------------------------------------------------------------


def multiples(
    vectors: Mapping[str, Tensor], groups: Sequence[str], classes: Sequence[tuple[str, ...]]
) -> dict[str, float]:
    """Return the distance of each failure as a multiple of the largest of the real images.

    Args:
        vectors: Features (N, D) of the real images and of every change of them.
        groups: Of each image: neighbours are not independent.
        classes: Of each image.
    """
    real = vectors[REAL]
    pairs = [halves(groups, SEED, k) for k in range(FLOORS)]
    largest = max(frechet_distance_of(real[pair.first], real[pair.second]) for pair in pairs)

    def distance(source: Tensor, rows: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
        of = [(real[pair.first], source[rows(pair.second, pair.first)]) for pair in pairs[:MEASURED]]
        return float(np.mean([frechet_distance_of(*one) for one in of]))

    found = {name: distance(changed, partial(_first, 1.0)) for name, changed in vectors.items()}
    for name, failure in selections(classes).items():
        found[name] = distance(real, failure.rows)
        if failure.share < 1.0:  # fewer images are farther from everything: back to what all would have
            fewer = distance(real, partial(_first, failure.share))
            found[name] *= found[REAL] / fewer
    return {name: value / largest for name, value in found.items()}


def run(
    data: ImageDataModule, compared: Mapping[str, Candidate], record: Path, at_most: int | None = None
) -> dict[str, dict[str, float]]:
    """Measure every failure with every extractor; what an earlier call has measured is not measured again.

    Args:
        data: Real images, set up.
        compared: The extractors.
        record: File of finished columns.
        at_most: Images, drawn at random; None = all.
    """
    splits = _splits(data)
    real = RealImages(data, splits, SEED, at_most)
    of = {record.name: record.labels for split in splits for record in data.split_records(split)}
    classes = [of[name] for name in real.names]
    everyone, own = list(range(len(real))), [real] * len(real)
    sets = {REAL: real} | {name: Planted(name, own, everyone, change) for name, change in CHANGES.items()}
    cache = VectorCache(data.cache_dir / "vectors")
    known = {row["key"]: row["multiples"] for row in finished(record)}
    found = {}
    for label, candidate in compared.items():
        identity = candidate.extractor.identity()
        key = key_of(real.identity(), identity, str(candidate.columns), [*CHANGES], FLOORS, MEASURED)
        if key not in known:
            candidate.load()
            vectors = {name: cache.vectors(images, candidate.extractor) for name, images in sets.items()}
            taken = {name: candidate.taken(of_set) for name, of_set in vectors.items()}
            known[key] = multiples(taken, real.groups, classes)
            append_rows(record, [{"key": key, "extractor": label, "identity": identity, "multiples": known[key]}])
        found[label] = known[key]
        print(f"{label}: {len(real)} images of {len(set(real.groups))} groups", flush=True)
    return found


# Perfect generators ---------------------------------------------------------------------------------------------------


class KnownVectors(VectorCache):
    """Vectors of parts, taken from those of the whole.

    Args:
        folder: Where those of the whole are kept.
        whole: The set.
        candidate: Says which features are taken.
    """

    def __init__(self, folder: Path, whole: ImageSet, candidate: Candidate) -> None:
        super().__init__(folder)
        self.whole, self.candidate = whole, candidate

    def vectors(self, images: ImageSet, extractor: FeatureExtractor, at_most: int | None = None) -> Tensor:
        """Return the vectors (N, D) of a part."""
        assert isinstance(images, Part)
        return self.candidate.taken(super().vectors(self.whole, extractor)[images.rows[:at_most]])

    def compute(self, images: ImageSet, wanted: Sequence[tuple[FeatureExtractor, int]], title: str = "") -> None:
        """Compute what is missing of the whole."""
        super().compute(self.whole, [(extractor, len(self.whole)) for extractor, _ in wanted])


def of_perfect_generators(
    data: ImageDataModule, name: str, candidate: Candidate, trials: int, record: Path, at_most: int | None = None
) -> list[Row]:
    """Return the Frechet distances, with floors and verdicts, of halves of the real images to the other halves.

    Args:
        data: Real images, set up.
        name: The extractor's name.
        candidate: The extractor.
        trials: Number of halves.
        record: File of finished scores.
        at_most: Images, drawn at random; None = all.
    """
    real = RealImages(data, _splits(data), SEED, at_most)
    candidate.load()
    vectors = KnownVectors(data.cache_dir / "vectors", real, candidate)
    rows = []
    for trial in range(trials):
        pair = halves(real.groups, SEED + 1, trial)
        sets = Sets(Part(real, pair.first), Part(real, pair.second), None, None)
        scorer = Scorer(sets, vectors, {name: candidate.extractor}, REPLICATES, SEED, record)
        rows += scorer.measure({"frechet": Frechet()})
    return rows


def _splits(data: ImageDataModule) -> list[str]:
    return [split for split in ("train", "val", "test") if data.size(split)]


def table(found: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Return rows of text, the head first."""
    names = next(iter(found.values()))
    return [["what was done", *found], *([name, *(f"{of[name]:.2f}" for of in found.values())] for name in names)]


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing, print the table, and write it."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.instruments.extractors", description=__doc__
    )
    parser.add_argument("experiment", help="whose data is used, at its final resolution")
    parser.add_argument("--folder", type=Path, default=Path("runs/extractors"), help="where results are kept")
    parser.add_argument("--images", type=int, help="images at most, drawn at random; all unless given")
    parser.add_argument("--halves", type=int, metavar="N", help="halves that play a perfect generator")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of the extractors that come with Mirage, these")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the experiment; extractors.NAME... adds")
    options = parser.parse_intermixed_args(arguments)
    log_to_terminal()
    shipped = candidates()
    if unknown := set(options.only or ()) - set(shipped):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(shipped)}")
    added = [text for text in options.overrides if text.startswith("extractors.")]
    tools = build_tools(load_suite("quick", added))
    names = {text.split("=")[0].split(".")[1] for text in added}
    compared = {name: one for name, one in shipped.items() if name in (options.only or shipped)}
    compared |= {name: Candidate(one) for name, one in tools.extractors.items() if name in names}
    rest = [text for text in options.overrides if text not in added]
    data = data_of(experiment_of(files.load(options.experiment, rest)))
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.halves:
        for name, candidate in compared.items():
            record = options.folder / "halves.jsonl"
            found = of_perfect_generators(data, name, candidate, options.halves, record, options.images)
            beyond = sum(in_half_widths(row, row["at_floor_size"]) > 1.0 for row in found)
            bad = sum(map(is_bad, found))
            print(f"{name}: {bad} of {len(found)} halves called bad, {beyond} beyond the floor's worse end")
        return
    rows = table(run(data, compared, options.folder / "multiples.jsonl", options.images))
    publish(rows, options.folder / f"{Path(options.experiment).stem}.csv")


if __name__ == "__main__":
    main()
