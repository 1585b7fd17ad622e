"""A paper at a scale: its runs, where they lie, and their scores. ``reproduce.py`` is the command line.

``<runs_dir>/papers/<paper>-<scale>/`` holds experiments/ (one file per run), runs/, and the paper's report.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from experiments.configuration import files, objects
from experiments.configuration.errors import ConfigError
from experiments.configuration.experiment import Experiment, experiment_of
from experiments.configuration.files import PAPERS, Node
from experiments.evaluation.evaluation import device_of
from experiments.evaluation.subject import Subject, cache_dir, real_data, sets_of
from experiments.jobs.child import newest_run, outcome
from experiments.measuring.rows import Row as Score
from experiments.measuring.scoring import Scorer, Sets
from experiments.measuring.settings import Suite, Tools, build_tools, load_suite
from experiments.measuring.vectors import VectorCache
from experiments.papers.paper import Paper
from experiments.record.loading import Trained, load_run
from experiments.record.run_directory import changed_hyper_parameters, matters, read_status, write_text
from experiments.running.parts import build, checked, recorded
from lightning_modules.metrics.features import FeatureExtractor, InceptionV3


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

    def command(self) -> list[str]:
        """Return the command line that begins the run, or goes on with it."""
        launch = [*self.overrides, f"runs_dir={self.folder.parent}", "resume=auto"]
        return [sys.executable, "-m", "experiments.run", str(self.file), *launch]

    def state(self) -> str:
        """Return "finished", "diverged", or what else became of it so far."""
        return "finished" if self.directory() else outcome(self.folder)[0] or "not begun"

    def directory(self) -> Path | None:
        """Return its run directory once it has finished; a run that was begun beside it later changes nothing."""
        found = [path.parent for path in self.folder.glob("*/config.yaml")]
        finished = [path for path in found if read_status(path).get("state") == "finished"]
        return min(finished, key=lambda path: path.name, default=None)


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

    Attributes:
        folder: The study's folder.
        rows: The paper's rows that this scale has, by name.
        runs: Every run, by row and seed.
        configs: The configuration of each.

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
        self.configs = self._checked()
        self._measured: dict[Path, Measured] = {}  # by run directory or checkpoint: rows, numbers and claims share them

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
        devices = next(iter(self.configs.values()))["trainer"]["devices"]
        return devices if isinstance(devices, int) else 1

    def runs_of(self, row: str) -> list[Run]:
        """Return the runs of a row, by seed."""
        return [run for run in self.runs if run.row == row]

    def measure(self, run: Run, images: int | None = None) -> Measured | None:
        """Return a run's scores; what has been measured is not measured again.

        Args:
            run: The run.
            images: The clock at which it is measured, if the run goes on behind it; None = the end of the run.

        Returns:
            None if the run has not finished, or has kept no checkpoint at the clock.
        """
        directory = run.directory()
        if directory is None:
            return None
        target: Path | None = directory
        if images is not None and images < self.configs[run]["schedule"]["total_images"]:
            target = _kept(directory, images)
        if target is not None and target not in self._measured:
            self._measured[target] = self._measure(run, directory, target)
        return self._measured[target] if target is not None else None

    def _measure(self, run: Run, directory: Path, target: Path) -> Measured:
        trained = load_run(target, self._device)
        subject = Subject(trained.checkpoint, trained)
        data = real_data(self.suite, subject)
        sets, vectors = sets_of(self.suite, subject, data), VectorCache(cache_dir(data) / "vectors", self._device)
        record = self.folder / "scores" / f"{run.folder.name}.jsonl"
        record.parent.mkdir(exist_ok=True)
        scorer = Scorer(sets, vectors, self.tools.extractors, self.suite.replicates, self.suite.seed, record)
        scores = {row["name"]: row for row in scorer.measure(self.tools.scores)}
        return Measured(run, directory, trained, sets, scores, self.tools.extractors, vectors)

    def prepare(self) -> list[str]:
        """Write the runs' experiments, after a look at everything that would end the study days later.

        Returns:
            The names of the extractors that score.

        Raises:
            ConfigError: If the suite cannot be built.
            DataError: If the data is not there.
            ExtractorError: If an extractor's weights cannot be used.
        """
        extractors = list(self.tools.extractors)
        for run, config in self.configs.items():
            build(experiment_of(config)).data.check()
            run.file.parent.mkdir(parents=True, exist_ok=True)
            write_text(run.file, self._experiment(run))
        return extractors

    def _planned(self, name: str, seed: int) -> Run:
        title = f"{name}_seed_{seed}"
        file = self.folder / "experiments" / f"{title}.yaml"
        return Run(name, seed, file, self.folder / "runs" / title, tuple(self.overrides))

    def _experiment(self, run: Run) -> str:
        """Return the experiment file of a run: the row's, with what the scale changes."""
        row = self.rows[run.row]
        changes = files.merge(files.merge(row.changes, self.scale.changes), self.scale.of_rows.get(run.row, {}))
        return OmegaConf.to_yaml(OmegaConf.create({"extends": row.experiment, "seed": run.seed, **changes}))

    def _checked(self) -> dict[Run, Node]:
        """Return every run's configuration.

        Raises:
            ConfigError: With everything that is wrong, also with what lies where a run will.
        """
        problems, configs = _problems_of_launch(self.overrides), {}
        with TemporaryDirectory() as scratch:
            for run in self.runs if not problems else []:
                file = Path(scratch) / run.file.name
                file.write_text(self._experiment(run))
                try:
                    configs[run] = files.load(str(file), run.overrides)
                    problems += _problems_of_run(run, checked(configs[run]))
                except ConfigError as error:
                    problems += error.problems
        if problems:
            raise ConfigError(list(dict.fromkeys(problems)))
        return configs


def load_study(name: str, overrides: Sequence[str]) -> Study:
    """Return a study.

    Args:
        name: A paper of ``configs/papers``, whose report is the module of that name beside this one.
        overrides: ``key=value``: those of ``Settings``, the others are of every run.

    Raises:
        ConfigError: With everything that is wrong.
    """
    if Path(name).suffix:
        raise ConfigError([f"{name}: name a shipped paper ({', '.join(files.shipped(PAPERS))})"])
    own = [text for text in overrides if text.partition("=")[0] in Settings.__dataclass_fields__]
    paper = objects.top_level(Paper, files.load(name, folder=PAPERS))
    values: dict[str, Any] = {}
    for text in own:
        values |= files.parse_override(text)
    if "scale" not in values:
        raise ConfigError([f"name a scale: scale={' or scale='.join(paper.scales)}"])
    return Study(paper, objects.top_level(Settings, values), [text for text in overrides if text not in own])


def _problems_of_launch(overrides: Sequence[str]) -> list[str]:
    """Return what would make the runs others than the paper's, or hide them."""
    keys = [text.partition("=")[0] for text in overrides]
    return [
        f"{key}: belongs to the paper's scale; a scale of your own is a node in its file in {PAPERS}"
        for key in keys
        if matters(key) or key in ("name", "run_id", "resume", "allow_changes", "experiment")
    ]


def _problems_of_run(run: Run, experiment: Experiment) -> list[str]:
    """Return what is wrong with the run that has ended in the place of this one."""
    directory = run.directory() or (newest_run(run.folder) if run.state() == "diverged" else None)
    changes = changed_hyper_parameters(directory, recorded(experiment)) if directory else []
    if not changes:
        return []
    return [f"{directory}: was trained with other settings; move it away, or set runs_dir ({'; '.join(changes)})"]


def _kept(directory: Path, images: int) -> Path | None:
    """Return the checkpoint that was kept at a clock, the first at or after it."""
    found = (path for path in (directory / "checkpoints").glob("kept_*.ckpt") if path.stem[5:].isdecimal())
    return min((path for path in found if int(path.stem[5:]) >= images), default=None)
