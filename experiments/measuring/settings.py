"""A suite: which instruments an evaluation takes, on how many images; checked before anything is computed."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from experiments.configuration import files, objects
from experiments.configuration.errors import ConfigError
from experiments.configuration.files import SUITES, Node
from lightning_modules.metrics.features import FeatureExtractor
from lightning_modules.metrics.local_weights import WHERE
from lightning_modules.metrics.memorisation import Copies
from lightning_modules.metrics.re_identification import ReIdentification
from lightning_modules.metrics.score import Instrument

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suite:
    """The top level of a suite's file.

    Args:
        scores: The instruments, by name; null leaves one out.
        images: Real and generated images, each at most; null = as many as there are real ones.
        replicates: Random halves that intervals and floors are made of.
        name: The file's name unless given.
        extractors: What instruments without vectors of their own read, by name; null leaves one out, and so does
            ``weights: null`` where weights are needed.
        seed: Names the generated images, the order of the real ones, and the halves.
        truncation: Factor on the latents of generated images.
        split: Real images that the generated ones are compared with.
        against: Real images: a folder, an experiment or a run; null = the data of the run that is evaluated. For a
            folder that is evaluated, their training split is taken for the images that its generator was trained on.
        data: Changes of that data's node, e.g. data.root.
        held_out: Folder of real images of other patients, where ``against`` is a folder of the training images.
        groups: CSV (file, group) of the folders ``against`` and ``held_out``: which files are of one patient. Further
            columns say what ``by`` asks for.
        by: What else the images are told apart by, e.g. sex or [sex,view]: every score is also taken within each slice.
        generated_labels: CSV (file, and the columns that ``by`` names) of the folder that is evaluated; null = a
            classifier that learned from the real images tells which slice a generated image belongs to.
        value_range: Values of files in these folders that become black and white; null = 0 to 255, for files of 8 bits,
            and what Mirage's own files of 16 bits say. Of DICOM files in the unit that rescaling leads to (CT: HU);
            null = as a viewer shows them.
        generated_value_range: The same of the folder that is evaluated.
        size: Height and width of files in a folder; null = those of most of the real images.
        pad: Pad files of another aspect ratio with black, on opposite sides alike; false = they are refused.
        output: Folder of the results; null = ``evaluation/<suite>-<clock>-<key>`` in the run directory,
            for folders ``evaluations/<folder>-<suite>-<key>`` here; the key is a hash of what was asked for.
        device: Where networks run.
    """

    scores: Node
    images: int | None
    replicates: int
    name: str = "suite"
    extractors: Node = field(default_factory=dict)
    seed: int = 1
    truncation: float = 1.0
    split: Literal["train", "val", "test"] = "train"
    against: str | None = None
    data: Node = field(default_factory=dict)
    held_out: str | None = None
    groups: str | None = None
    by: str | tuple[str, ...] = ()
    generated_labels: str | None = None
    value_range: tuple[float, float] | None = None
    generated_value_range: tuple[float, float] | None = None
    size: tuple[int, int] | None = None
    pad: bool = False
    output: str | None = None
    device: Literal["cpu", "cuda", "auto"] = "auto"

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if self.images is not None and self.images < 2:
            raise ValueError(f"images={self.images}: a distribution needs at least 2")
        if self.replicates < 10:
            raise ValueError(f"replicates={self.replicates}: a spread needs at least 10")
        if self.generated_labels is not None and not self.attributes:
            raise ValueError("generated_labels: says of which slice images are; name the columns with by=")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must not be negative")
        for name in ("value_range", "generated_value_range"):
            ends = getattr(self, name)
            if ends is not None and not -math.inf < ends[0] < ends[1] < math.inf:
                raise ValueError(f"{name}={list(ends)}: give two finite values, the smaller one first")

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes by which images are told apart, each once, in small letters as those of images are."""
        named = (self.by,) if isinstance(self.by, str) else self.by
        return tuple(dict.fromkeys(name.strip().lower() for name in named))


@dataclass(frozen=True)
class Tools:
    """What a suite builds."""

    extractors: Mapping[str, FeatureExtractor]
    instruments: Mapping[str, Instrument]

    @property
    def copies(self) -> Copies | None:
        """The first score of near copies; None = the suite leaves it out."""
        return next((one for one in self.instruments.values() if isinstance(one, Copies)), None)

    @property
    def re_identification(self) -> ReIdentification | None:
        """The re-identification test, which asks for patients and is no score; None = the suite leaves it out."""
        return next((one for one in self.instruments.values() if isinstance(one, ReIdentification)), None)

    @property
    def scores(self) -> Mapping[str, Instrument]:
        """The instruments that vectors without patients are enough for."""
        return {name: one for name, one in self.instruments.items() if not isinstance(one, ReIdentification)}

    def load(self, device: torch.device | str) -> None:
        """Fetch what extractors need, and bring them to a device.

        Raises:
            ExtractorError: If one cannot be had.
        """
        own = [one.reads for one in self.instruments.values() if one.reads is not None]
        for extractor in (*self.extractors.values(), *own):
            extractor.prepare()
            extractor.load()
            extractor.to(device).eval().requires_grad_(False)


def load_suite(name_or_file: str, overrides: Sequence[str]) -> Suite:
    """Return a checked suite, without the extractors that lack weights.

    Raises:
        ConfigError: With everything that is wrong with it.
    """
    suite = objects.top_level(Suite, files.load(name_or_file, overrides, folder=SUITES))
    waiting = {name: node for name, node in suite.extractors.items() if _needs_weights(node) and _has_none(node)}
    problems = []
    for name, node in waiting.items():
        problems += objects.check({**node, "weights": "file"}, f"extractors.{name}", FeatureExtractor)
    suite = replace(suite, extractors={**suite.extractors, **dict.fromkeys(waiting)})
    for key, base, nodes in (("extractors", FeatureExtractor, suite.extractors), ("scores", Instrument, suite.scores)):
        for name, node in nodes.items():
            problems += objects.check(node, f"{key}.{name}", base) if node is not None else []
    add = f"extractors.NAME.weights=FILE adds one ({WHERE})"
    if waiting and not problems and not any(_needs_weights(node) for node in suite.extractors.values()):
        problems.append(f"{suite.name}: none of {', '.join(waiting)} has weights; {add}")
    if problems:
        raise ConfigError(problems)
    if waiting:
        log.info("%s: left out for want of weights: %s; %s", suite.name, ", ".join(waiting), add)
    return suite


def _needs_weights(node: Any) -> bool:
    try:
        return "weights" in objects.required(node)
    except (ConfigError, KeyError, TypeError, AttributeError):  # no class: the check says what is wrong
        return False


def _has_none(node: Node) -> bool:
    return node.get("weights", "missing") is None


def build_tools(suite: Suite) -> Tools:
    """Build extractors and instruments.

    Raises:
        ConfigError: With every value that a class refuses.
    """
    problems: list[str] = []
    built: dict[str, dict] = {"extractors": {}, "scores": {}}
    for key, base, nodes in (("extractors", FeatureExtractor, suite.extractors), ("scores", Instrument, suite.scores)):
        for name, node in nodes.items():
            try:
                if node is not None:
                    built[key][name] = objects.build(node, f"{key}.{name}", base)
            except ConfigError as error:
                problems += error.problems
    if not built["extractors"] and any(one.reads is None for one in built["scores"].values()):
        problems.append("extractors: instruments read features, and there is no extractor")
    if problems:
        raise ConfigError(problems)
    return Tools(built["extractors"], built["scores"])
