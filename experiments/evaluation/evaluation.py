"""From a run or a folder to scores and a report. ``evaluate.py`` is its command line."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from callbacks.version import code_version
from datamodules.files.pseudonyms import Pseudonyms
from experiments.configuration.errors import ConfigError
from experiments.configuration.experiment import experiment_of
from experiments.evaluation import privacy
from experiments.evaluation.page import Gallery, moment_sections, write_page
from experiments.evaluation.slices import SliceScorer, check_slices
from experiments.evaluation.slices_found import slice_lines
from experiments.evaluation.slices_page import write_slices
from experiments.evaluation.subject import Subject, cache_dir, real_data, sets_of, subject_of
from experiments.measuring.equal_pixels import PixelHash, checked_pixels
from experiments.measuring.folders import text_of_size
from experiments.measuring.image_sets import FolderImages, ImageSet
from experiments.measuring.moment_analysis import MomentStudy, PruningEffect, analyse, pruning_effect
from experiments.measuring.moments_page import tables_csv
from experiments.measuring.rows import Row
from experiments.measuring.scoring import Scorer, Sets
from experiments.measuring.settings import Suite, Tools, build_tools
from experiments.measuring.vectors import VectorCache, key_of
from experiments.pages.elements import Html
from experiments.pages.text import csv_text
from experiments.record.run_directory import write_text
from lightning_modules.metrics.memorisation import Copies, Copy, copies
from lightning_modules.metrics.moments import Moments
from lightning_modules.metrics.re_identification import Finding

log = logging.getLogger(__name__)

SIZES = 10  # sizes of files that are listed, the most frequent ones


def evaluate(target: str, suite: Suite) -> Path:
    """Measure a run or a folder, and return the folder of the results.

    It holds ``scores.json``, ``scores.csv``, ``copies.csv``, ``re_identified.csv`` and ``report.html``; with a score of
    moments ``moments.csv``, with ``by`` ``slices.csv`` and ``slices.html``; and, until it is finished,
    ``scores.partial.jsonl``, from which a killed evaluation goes on.

    Args:
        target: A run directory, a checkpoint of one, or a folder of images.
        suite: What to measure.

    Raises:
        ConfigError: If something that the user named cannot be used.
        DataError: If the data cannot be used.
        ExtractorError: If an extractor cannot be had or used.
    """
    tools = build_tools(suite)
    device = device_of(suite.device)
    subject = subject_of(Path(target), device)
    data = real_data(suite, subject)
    sets = sets_of(suite, subject, data)
    if suite.attributes:
        of_labels = check_slices(suite, tools, sets)
        for warning in of_labels:
            log.warning("warning: %s", warning)
        sets = replace(sets, warnings=(*sets.warnings, *of_labels))
    output = _output(suite, subject)
    pseudonyms = _pseudonyms(subject, output)
    pseudonyms.check()
    tools.load(device)
    output.mkdir(parents=True, exist_ok=True)
    cache = VectorCache(cache_dir(data) / "vectors", device)
    finished = output / "scores.partial.jsonl"
    scorer = Scorer(sets, cache, tools.extractors, suite.replicates, suite.seed, finished)
    if any(isinstance(images, FolderImages) for images in (sets.real, sets.generated)):
        read = scorer.compute_vectors(list(tools.instruments.values()), also=PixelHash())
        sets = checked_pixels(sets, read, cache)
    rows = scorer.measure(tools.scores)
    slices = SliceScorer(sets, cache, tools, suite, finished).measure() if suite.attributes else None
    near = near_copies(sets, cache, tools.copies)
    said = _said(suite, subject, sets) | ({} if slices is None else {"slices": slice_lines(slices)})
    findings = privacy.re_identify(sets, cache, tools)
    if findings:
        of_privacy = privacy.verdicts(rows, findings, near, sets, tools.copies)
        said["privacy"] = [asdict(verdict) for verdict in of_privacy]
        said["re_identification"] = privacy.numbers(findings, scorer, tools)
    write_text(output / "scores.json", json.dumps({**said, "scores": rows}, indent=1) + "\n")
    _write_csv(output / "scores.csv", rows)
    for name in ("copies.csv", "moments.csv", "slices.csv", "slices.html", privacy.REIDENTIFIED):  # of one before
        (output / name).unlink(missing_ok=True)
    if slices is not None:
        write_slices(output, said["what"], slices, sets)
    if any(isinstance(finding, Finding) for finding in findings.values()):
        privacy.write_matches(output / privacy.REIDENTIFIED, findings, sets, pseudonyms)
    if near is not None:
        _write_copies(output / "copies.csv", near, sets, pseudonyms)
    sections: list[Html] = []
    if any(isinstance(score.reads, Moments) for score in tools.scores.values()):
        study, pruning = moments_of(sets, cache, scorer, tools, suite.seed)
        sections = moment_sections(study, pruning)
        if study is not None:
            write_text(output / "moments.csv", tables_csv(study, pruning))
    gallery = Gallery(sets, cache, pseudonyms, tools.copies, near)
    write_page(output / "report.html", said, rows, gallery, sections)
    finished.unlink(missing_ok=True)
    return output


def score_lines(rows: list[Row], of_sets: Sequence[str] = ()) -> list[str]:
    """Return a table of scores as lines of text, the warnings last: those of the sets of images, then each score's."""
    width = max([34, *(len(row["name"]) for row in rows)])
    lines = [f"{'score':<{width}} {'value':>10}  {'95 % interval':<23} {'floor (real, half size)':<25} verdict"]
    for row in rows:
        if row["value"] is None:
            lines.append(f"{row['name']:<{width}} {'-':>10}  {row['refused']}")
            continue
        interval = f"{row['low']:.4g} .. {row['high']:.4g}" if "low" in row else "-"
        floor = f"{row['floor_low']:.4g} .. {row['floor_high']:.4g}" if "low" in row else "-"
        numbers = f"{row['value']:>10.4g}  {interval:<23} {floor:<25}"
        lines.append(f"{row['name']:<{width}} {numbers} {row.get('verdict', '-')}")
    warnings = dict.fromkeys(f"{row['score']}: {warning}" for row in rows for warning in row.get("warnings", ()))
    return [*lines, *(f"warning: {warning}" for warning in (*of_sets, *warnings))]


def moments_of(
    sets: Sets, vectors: VectorCache, scorer: Scorer, tools: Tools, seed: int
) -> tuple[MomentStudy | None, PruningEffect | None]:
    """Return Korkinof's analysis, and what leaving out outliers does to every score; None = too few images."""
    reader = Moments()
    try:
        real, generated = vectors.vectors(sets.real, reader), vectors.vectors(sets.generated, reader)
        study = analyse(real, generated, seed)
        scores = partial(scorer.values, tools.scores)
        return study, pruning_effect(real, generated, scores, seed) if study.outside else None
    except ValueError as error:
        log.warning("moments are not analysed: %s", error)
        return None, None


def near_copies(sets: Sets, vectors: VectorCache, score: Copies | None) -> list[Copy] | None:
    """Return the generated images that a suite's score counts as copies; None = it has none, or it cannot be told."""
    if score is None or sets.train is None or sets.held_out is None or len(sets.held_out) < 2:
        return None
    pixels = score.reads
    try:
        train, held_out = vectors.vectors(sets.train, pixels), vectors.vectors(sets.held_out, pixels)
        return copies(train, held_out, vectors.vectors(sets.generated, pixels), score.false_alarms)
    except ValueError as error:
        log.warning("near copies cannot be told: %s", error)
        return None


def _write_copies(path: Path, near: list[Copy], sets: Sets, pseudonyms: Pseudonyms) -> None:
    assert sets.train is not None
    names, train = sets.generated.names, [pseudonyms.of(sets.train.names[copy.train]) for copy in near]
    rows = ([names[copy.generated], who, copy.distance, copy.threshold] for copy, who in zip(near, train, strict=True))
    write_text(path, csv_text([["generated", "training image (pseudonym)", "distance", "threshold"], *rows]))


def _said(suite: Suite, subject: Subject, sets: Sets) -> dict[str, Any]:
    """Return what was evaluated, in plain values without names of patients or files."""
    trained = subject.trained
    return {
        "what": sets.generated.what,
        "against": sets.real.what,
        "suite": suite.name,
        "code_version": code_version(),
        "images_seen": trained.module.images_seen if trained else None,
        "weights_sha256": trained.weights_sha256 if trained else None,
        "warnings": list(sets.warnings),
        "generated": {**sets.generated.identity(), "images": len(sets.generated), **_own_sizes(sets.generated)},
        "real": {**sets.real.identity(), "groups": len(set(sets.real.groups)), **_own_sizes(sets.real)},
        "train": len(sets.train) if sets.train else None,
        "held_out": len(sets.held_out) if sets.held_out else None,
        "resolution": list(sets.real.size),
        "generated_at": list(trained.module.schedule.at(trained.module.images_seen).resolution) if trained else None,
        "resampling": "halves of the groups without replacement, 95 % intervals",
    }


def _own_sizes(images: ImageSet) -> dict[str, Any]:
    """Return the sizes that files had, and how many of them; nothing of what is no folder."""
    if not isinstance(images, FolderImages):
        return {}
    return {"own_sizes": {text_of_size(size): count for size, count in images.own_sizes.most_common(SIZES)}}


def _output(suite: Suite, subject: Subject) -> Path:
    if suite.output is not None:
        return Path(suite.output)
    # Two evaluations with other settings are two folders; the same command finds its own again.
    what = str(subject.path.resolve()) if subject.trained is None else subject.trained.weights_sha256
    key = key_of({**vars(suite), "output": None}, what)[:6]
    if subject.trained is None:
        return Path("evaluations") / f"{subject.path.resolve().name}-{suite.name}-{key}"
    clock = subject.trained.module.images_seen
    return subject.trained.directory / "evaluation" / f"{suite.name}-{clock:012d}-{key}"


def _pseudonyms(subject: Subject, output: Path) -> Pseudonyms:
    if subject.trained is None:
        return Pseudonyms("mirage", output)
    experiment = experiment_of(subject.trained.config)
    return Pseudonyms(experiment.wandb_project, Path(experiment.runs_dir))


def device_of(name: str) -> torch.device:
    """Return the device that "cpu", "cuda" or "auto" means here.

    Raises:
        ConfigError: If there is no GPU and one was asked for.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(["device=cuda: no GPU is visible here"])
    return torch.device(name)


def _write_csv(path: Path, rows: list[Row]) -> None:
    columns = ("name", "value", "low", "high", "at_floor_size", "floor", "floor_low", "floor_high", "verdict", "better")
    lines = (
        [*(row.get(column) for column in columns), row.get("refused", ""), "; ".join(row.get("warnings", ()))]
        for row in rows
    )
    write_text(path, csv_text([[*columns, "refused", "warnings"], *lines]))
