"""Which scores see which failure? ``python -m experiments.benchmarks.instruments.planted_failures``.

Real images that nobody trained on stand for a perfect generator; then something is done to them that generators do.
Every set is measured with a suite against the training images. The table says how far each score lies from the middle
of its floor, in half-widths of the floor; positive is worse, and an asterisk marks what no real images get.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from datamodules.base import ImageDataModule
from experiments.benchmarks.instruments.tables import publish
from experiments.cli import log_to_terminal
from experiments.configuration import files
from experiments.configuration.experiment import experiment_of
from experiments.evaluation.evaluation import near_copies
from experiments.measuring.image_sets import ImageSet, RealImages
from experiments.measuring.rows import Row, in_half_widths, is_bad
from experiments.measuring.scoring import Scorer, Sets
from experiments.measuring.settings import build_tools, load_suite
from experiments.measuring.vectors import VectorCache
from experiments.record.loading import data_of

# Halves for the training images, a fifth to be held out, the rest plays the generator.
PHANTOMS = (
    "dcgan_chest_phantoms_64",
    "data.kind=kidney_ct",
    "data.val_fraction=0.2",
    "data.test_fraction=0.4",
)
COPIES, COLLAPSE, NOISE = 0.2, 0.1, 0.01  # shares of the images; noise of a copy, in the unit of the pixels
BLUR, SHIFT = 0.8, 0.1  # pixels; in the unit of the pixels, of [-1, 1]
PERFECT = "perfect generator"


class Planted(ImageSet):
    """Images of which some are replaced or changed.

    Args:
        what: Name of the failure.
        source: Image i is image ``which[i]`` of the set ``source[i]``.
        change: What is done to each image (C, H, W), given its number.
    """

    def __init__(
        self, what: str, source: Sequence[ImageSet], which: Sequence[int], change: Callable[[Tensor, int], Tensor]
    ) -> None:
        self.what, self.source, self.which, self.change = what, source, which, change
        self.names = self.groups = [f"{what} {i}" for i in range(len(which))]
        self.size = source[0].size

    def identity(self) -> dict[str, Any]:
        """Return the failure and the images that it was made of."""
        of = [images.identity() for images in dict.fromkeys(self.source)]
        return {"failure": self.what, "sizes": [COPIES, COLLAPSE, NOISE, BLUR, SHIFT], "of": of, "images": len(self)}

    def read(self, start: int, stop: int) -> Tensor:
        """Read and change."""
        images = [self.source[i].read(self.which[i], self.which[i] + 1)[0] for i in range(start, stop)]
        return torch.stack([self.change(image, i).clamp(-1.0, 1.0) for i, image in enumerate(images, start)])


def planted(fresh: ImageSet, train: ImageSet, classes: Sequence[tuple[str, ...]]) -> dict[str, ImageSet]:
    """Return the perfect generator and its failures.

    Args:
        fresh: Real images that nobody trained on.
        train: The training images.
        classes: Classes of each fresh image.
    """
    count = len(fresh)
    everyone, own = list(range(count)), [fresh] * count
    some = max(1, int(COLLAPSE * count))
    copied = int(COPIES * count)
    present = sorted({name for of in classes for name in of})
    missing = [i for i in everyone if present[0] not in classes[i]]

    def same(image: Tensor, i: int) -> Tensor:
        return image

    def noisy(image: Tensor, i: int) -> Tensor:
        return image + NOISE * torch.randn(image.shape, generator=torch.Generator().manual_seed(i))

    def copy_some(image: Tensor, i: int) -> Tensor:
        return noisy(image, i) if i < copied else image

    return {
        PERFECT: Planted(PERFECT, own, everyone, same),
        "collapse onto 10 %": Planted("collapse", own, [i % some for i in everyone], noisy),
        "20 % copies": Planted("copies", [*[train] * copied, *own[copied:]], everyone, copy_some),
        "blur": Planted("blur", own, everyone, lambda image, i: gaussian_blur(image, [5, 5], [BLUR, BLUR])),
        "shift of intensity": Planted("shift", own, everyone, lambda image, i: image + SHIFT),
        f"no {present[0]}": Planted(f"no {present[0]}", own[: len(missing)], missing, same),
    }


@dataclass(frozen=True)
class Result:
    """What was found about one set.

    Attributes:
        rows: Its scores.
        named: Its images that are named as near copies of training images.
    """

    rows: list[Row]
    named: set[int]


def run(data: ImageDataModule, suite_name: str, overrides: Sequence[str], folder: Path) -> dict[str, Result]:
    """Measure every failure; what an earlier call has measured is not measured again.

    Args:
        data: Real images, set up: its test split plays the generator, its val split is held out.
        suite_name: The suite.
        overrides: Changes of its values.
        folder: Where scores are kept.
    """
    suite = load_suite(suite_name, overrides)
    tools = build_tools(suite)
    tools.load("cpu")
    train, held_out = RealImages(data, ["train"], suite.seed), RealImages(data, ["val"], suite.seed)
    real = RealImages(data, ["train"], suite.seed, suite.images)
    fresh = RealImages(data, ["test"], suite.seed, len(real))
    labels = {record.name: record.labels for record in data.split_records("test")}
    vectors = VectorCache(data.cache_dir / "vectors")
    found = {}
    for name, images in planted(fresh, train, [labels[image] for image in fresh.names]).items():
        sets = Sets(real, images, train, held_out)
        scorer = Scorer(sets, vectors, tools.extractors, suite.replicates, suite.seed, folder / "scores.partial.jsonl")
        rows = scorer.measure(tools.scores)
        found[name] = Result(rows, {copy.generated for copy in near_copies(sets, vectors, tools.copies) or ()})
        print(f"{name}: {len(images)} images, {len(found[name].named)} named as near copies", flush=True)
    return found


def table(found: dict[str, Result]) -> list[list[str]]:
    """Return rows of text, the head first; an asterisk marks what lies outside the floor on the worse side."""
    rows = [["score", *found]]
    for of_score in zip(*(result.rows for result in found.values()), strict=True):
        cells = [
            f"{in_half_widths(row, row['at_floor_size']):+.1f}{'*' if is_bad(row) else ''}" if "low" in row else "-"
            for row in of_score
        ]
        rows.append([of_score[0]["name"], *cells])
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing, print the table, and write it."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.instruments.planted_failures", description=__doc__
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/planted_failures"), help="where scores are kept")
    parser.add_argument("--suite", default="standard", help="a shipped suite or a YAML file")
    parser.add_argument("--count", type=int, default=5_000, help="phantoms, two fifths of them to compare with")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the suite's values")
    options = parser.parse_intermixed_args(arguments)
    log_to_terminal()
    options.folder.mkdir(parents=True, exist_ok=True)
    data = phantoms(options.count)
    rows = table(run(data, options.suite, options.overrides, options.folder))
    publish(rows, options.folder / "planted_failures.csv")


def phantoms(count: int, *overrides: str) -> ImageDataModule:
    """Return kidney CT phantoms, set up, in the three parts that the study needs."""
    return data_of(experiment_of(files.load(PHANTOMS[0], [*PHANTOMS[1:], f"data.count={count}", *overrides])))


if __name__ == "__main__":
    main()
