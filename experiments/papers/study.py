"""A paper at a scale: its runs, where they lie, and their scores. ``reproduce.py`` is the command line.

``<runs_dir>/papers/<paper>-<scale>/`` holds experiments/ (one file per run), runs/, and the paper's report.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from experiments import config as cfg
from experiments.config import PAPERS, ConfigError, Node
from experiments.evaluation.evaluation import device_of
from experiments.evaluation.scoring import Row as Score
from experiments.evaluation.scoring import Scorer, Sets
from experiments.evaluation.settings import Suite, Tools, build_tools, load_suite
from experiments.evaluation.subject import Subject, cache_dir, real_data, sets_of
from experiments.evaluation.vectors import VectorCache
from experiments.loading import Trained, load_run
from experiments.run_directory import changed_hyper_parameters, write_text
from experiments.sweeps import trials
from experiments.training import problems_of_nodes, recorded
from lightning_modules.metrics.features import FeatureExtractor, InceptionV3


@dataclass(frozen=True)
class Row:
    """One line of a paper's comparison.

    Attributes:
        title: What it is called in tables.
        experiment: The shipped experiment that trains it.
        changes: Values of it that this row changes, nested.
    """

    title: str
    experiment: str
    changes: Node = field(default_factory=dict)


@dataclass(frozen=True)
class Number:
    """One score that the paper gives.

    Attributes:
        row: Which run it is of.
        section: Where it stands.
        after: How long was trained, in the paper's words.
        value: The score; None = the paper names the run and gives no score.
        images: The clock it was taken at; None = the end of the run.
    """

    row: str
    section: str
    after: str
    value: float | None = None
    images: int | None = None


@dataclass(frozen=True)
class Claim:
    """What the paper says about two rows: the first has the better score."""

    better: str
    worse: str
    section: str


@dataclass(frozen=True)
class Scale:
    """How much of the paper is carried out.

    Attributes:
        about: What is less than in the paper, for the report; empty = nothing.
        seeds: Each row is trained once with each.
        changes: Values of every row's experiment that are changed, nested.
        of_rows: The same of single rows.
        without: Rows that are left out.
    """

    about: str
    seeds: tuple[int, ...]
    changes: Node = field(default_factory=dict)
    of_rows: dict[str, Node] = field(default_factory=dict)
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Paper:
    """A paper's file in ``configs/papers``: everything that it reports.

    Attributes:
        name: The file's name; ``configs/suites`` has a suite of this name.
        title: Author, title, place and year.
        images: Images that it trained on.
        rows: What it compares, by name.
        numbers: Its scores.
        claims: Which of its rows it calls better.
        scales: How it can be carried out, by name.
    """

    name: str
    title: str
    images: int
    rows: dict[str, Row]
    numbers: tuple[Number, ...]
    claims: tuple[Claim, ...]
    scales: dict[str, Scale]

    def __post_init__(self) -> None:
        """Refuse names of rows that do not exist."""
        named = [number.row for number in self.numbers]
        named += [name for claim in self.claims for name in (claim.better, claim.worse)]
        named += [name for scale in self.scales.values() for name in (*scale.of_rows, *scale.without)]
        if unknown := sorted(set(named) - set(self.rows)):
            raise ValueError(f"rows: there is no {', '.join(unknown)}")


@dataclass(frozen=True)
class Settings:
    """How a paper is carried out here.

    Args:
        scale: One of the paper's scales.
        parallel: Runs that train at a time.
        runs_dir: Folder of all runs; the study's folder is ``papers/<paper>-<scale>`` in it.
        inception: File of Inception-v3's reference weights; null = torch's hub cache, if they are there.
    """

    scale: str
    parallel: int = 1
    runs_dir: str = "runs"
    inception: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        if self.parallel < 1:
            raise ValueError(f"parallel={self.parallel}: must be at least 1")
        if self.inception is not None and not Path(self.inception).is_file():
            raise ValueError(f"inception={self.inception}: there is no such file")


@dataclass(frozen=True)
class Run:
    """A run of the study: one row with one seed.

    Attributes:
        row: Its row.
        seed: Its seed.
        file: Its experiment, written for it.
        folder: Where its run directory is made.
        overrides: What this launch adds: paths, devices, tracking.
    """

    row: str
    seed: int
    file: Path
    folder: Path
    overrides: tuple[str, ...]

    def arguments(self) -> list[str]:
        """Return the arguments of ``experiments.run`` that begin the run, or go on with it."""
        return [str(self.file), *self.overrides, f"runs_dir={self.folder.parent}", "resume=auto"]

    def command(self) -> list[str]:
        """Return its command line."""
        return [sys.executable, "-m", "experiments.run", *self.arguments()]

    def directory(self) -> Path | None:
        """Return its run directory once it has finished."""
        return trials.newest_run(self.folder) if trials.outcome(self.folder)[0] == "finished" else None


@dataclass(frozen=True)
class Measured:
    """A generator and its scores.

    Attributes:
        run: The run it is of.
        directory: The run directory.
        trained: The generator.
        sets: The images that were compared.
        scores: By name.
        extractors: What embeds images, loaded, by name.
        vectors: Where embeddings are kept.
    """

    run: Run
    directory: Path
    trained: Trained
    sets: Sets
    scores: dict[str, Score]
    extractors: Mapping[str, FeatureExtractor]
    vectors: VectorCache

    def embeddings(self, extractor: str) -> tuple[Tensor, Tensor]:
        """Return the embeddings (N, D) of the real and of the generated images, from the cache."""
        one = self.extractors[extractor]
        return self.vectors.vectors(self.sets.real, one), self.vectors.vectors(self.sets.generated, one)


class Study:
    """A paper at a scale, on this machine.

    Args:
        paper: What it reports.
        settings: How it is carried out here.
        overrides: ``key=value`` of every run that belong to this launch: data.root, trainer.devices, tracking ...

    Raises:
        ConfigError: With everything that is wrong.
    """

    def __init__(self, paper: Paper, settings: Settings, overrides: Sequence[str]) -> None:
        if settings.scale not in paper.scales:
            raise ConfigError([f"scale={settings.scale}: {paper.name} has {', '.join(paper.scales)}"])
        self.paper, self.settings, self.scale = paper, settings, paper.scales[settings.scale]
        self.folder = (Path(settings.runs_dir) / "papers" / f"{paper.name}-{settings.scale}").absolute()
        self.overrides = list(overrides)
        self.rows = {name: row for name, row in paper.rows.items() if name not in self.scale.without}
        self.runs = [self._planned(name, seed) for name in self.rows for seed in self.scale.seeds]
        self._write_experiments()

    @cached_property
    def suite(self) -> Suite:
        """What is measured: ``configs/suites`` has one for each paper."""
        found = [text for text in self.overrides if text.startswith("data.")]
        weights = InceptionV3(self.settings.inception).weights
        if weights.is_file():
            found.append("extractors.inception._target_=lightning_modules.metrics.features.InceptionV3")
            found.append(f"extractors.inception.weights={weights}")
        return load_suite(self.paper.name, found)

    @cached_property
    def tools(self) -> Tools:
        """What measures, loaded."""
        tools = build_tools(self.suite)
        tools.load(self._device)
        return tools

    @property
    def _device(self) -> torch.device:
        return device_of(self.suite.device)

    @property
    def parallel(self) -> int:
        """Runs at a time."""
        return self.settings.parallel

    @property
    def devices_per_trial(self) -> int:
        """Processes of a run on this machine."""
        devices = self._config(self.runs[0])["trainer"]["devices"]
        return devices if isinstance(devices, int) else 1

    def runs_of(self, row: str) -> list[Run]:
        """Return the runs of a row, by seed."""
        return [run for run in self.runs if run.row == row]

    def measure(self, run: Run, images: int | None = None) -> Measured | None:
        """Return a run's scores; what has been measured is not measured again.

        Args:
            run: The run.
            images: A clock whose checkpoint was kept; None = the end of the run.

        Returns:
            None if the run has not finished, or has kept no checkpoint at the clock.
        """
        directory = run.directory()
        target = directory if images is None or directory is None else _kept(directory, images)
        if directory is None or target is None:
            return None
        trained = load_run(target, self._device)
        subject = Subject(trained.checkpoint, trained)
        data = real_data(self.suite, subject)
        sets, vectors = sets_of(self.suite, subject, data), VectorCache(cache_dir(data) / "vectors", self._device)
        record = self.folder / "scores" / f"{run.folder.name}.jsonl"
        record.parent.mkdir(exist_ok=True)
        scorer = Scorer(sets, vectors, self.tools.extractors, self.suite.replicates, self.suite.seed, record)
        scores = {row["name"]: row for row in scorer.measure(self.tools.instruments)}
        return Measured(run, directory, trained, sets, scores, self.tools.extractors, vectors)

    def _planned(self, name: str, seed: int) -> Run:
        title = f"{name}_seed_{seed}"
        file = self.folder / "experiments" / f"{title}.yaml"
        return Run(name, seed, file, self.folder / "runs" / title, tuple(self.overrides))

    def _write_experiments(self) -> None:
        problems: list[str] = []
        for run in self.runs:
            row = self.rows[run.row]
            changes = cfg.merge(row.changes, self.scale.changes)
            changes = cfg.merge(changes, self.scale.of_rows.get(run.row, {}))
            run.file.parent.mkdir(parents=True, exist_ok=True)
            node = OmegaConf.create({"extends": row.experiment, "seed": run.seed, **changes})
            write_text(run.file, OmegaConf.to_yaml(node))
            problems += self._problems(run)
        if problems:
            raise ConfigError(list(dict.fromkeys(problems)))

    def _problems(self, run: Run) -> list[str]:
        """Return what is wrong with a run's experiment, or with the finished run that lies in its place."""
        try:
            experiment = cfg.experiment(self._config(run))
            if problems := problems_of_nodes(experiment):
                return problems
            directory = run.directory()
            changes = changed_hyper_parameters(directory, recorded(experiment)) if directory else []
        except ConfigError as error:
            return error.problems
        if not changes:
            return []
        return [f"{directory}: was trained with other settings; move it away, or set runs_dir ({'; '.join(changes)})"]

    def _config(self, run: Run) -> Node:
        return cfg.load(str(run.file), run.overrides)


def load_study(name: str, overrides: Sequence[str]) -> Study:
    """Return a study.

    Args:
        name: A paper of ``configs/papers``, whose report is the module of that name beside this one.
        overrides: ``key=value``: those of ``Settings``, the others are of every run.

    Raises:
        ConfigError: With everything that is wrong.
    """
    if Path(name).suffix:
        raise ConfigError([f"{name}: name a shipped paper ({', '.join(cfg.shipped(PAPERS))})"])
    own = [text for text in overrides if text.partition("=")[0] in Settings.__dataclass_fields__]
    paper = cfg.top_level(Paper, cfg.load(name, folder=PAPERS))
    values: dict[str, Any] = {}
    for text in own:
        values |= cfg.parse_override(text)
    if "scale" not in values:
        raise ConfigError([f"name a scale: scale={' or scale='.join(paper.scales)}"])
    return Study(paper, cfg.top_level(Settings, values), [text for text in overrides if text not in own])


def _kept(directory: Path, images: int) -> Path | None:
    """Return the checkpoint that was kept at a clock, the first at or after it."""
    found = (path for path in (directory / "checkpoints").glob("kept_*.ckpt") if int(path.stem[5:]) >= images)
    return min(found, default=None)
