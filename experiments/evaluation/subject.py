"""What is evaluated, and which real images it is compared with."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from callbacks.real_images import RealPairs
from datamodules.base import ImageDataModule
from datamodules.decoding.value_range import ends_of, share_used, unlike_shares
from experiments.configuration import files as config_files
from experiments.configuration.errors import ConfigError
from experiments.configuration.experiment import experiment_of
from experiments.evaluation.privacy import SUITE as PRIVACY
from experiments.measuring.folders import image_cache, overlap
from experiments.measuring.image_sets import FolderImages, GeneratedImages, ImageSet, RealImages, TranslatedImages
from experiments.measuring.scoring import Sets
from experiments.measuring.settings import Suite
from experiments.record.loading import Trained, data_of, load_trained
from experiments.record.run_directory import recorded_config, refuse_links
from lightning_modules.protocols import Averages, Translates, can

log = logging.getLogger(__name__)

TRANSLATE = "translate images with python -m experiments.translate, and evaluate the folder that it writes"
LOOKED_AT, TOGETHER = 100, 10  # images of a set whose values are looked at before any score is taken; read at a time


@dataclass(frozen=True)
class Subject:
    """A run, or a folder of images.

    Attributes:
        path: As the user named it.
        trained: What the run has trained, a generator or a translator; None = a folder.
    """

    path: Path
    trained: Trained[Averages] | None


def subject_of(path: Path, device: torch.device) -> Subject:
    """Load what is evaluated.

    Raises:
        ConfigError: If it is neither a run nor a folder, or the run directory leads elsewhere.
    """
    if path.is_file() or (path / "config.yaml").is_file():
        trained = load_trained(path, device, Averages)
        refuse_links(trained.directory)
        return Subject(path, trained)
    if path.is_dir():
        return Subject(path, None)
    raise ConfigError([f"{path}: is no run directory, no checkpoint and no folder of images"])


def real_data(suite: Suite, subject: Subject) -> ImageDataModule | Path:
    """Return the real images: a data set that is ready, or a folder.

    Raises:
        ConfigError: If they are not named, or are not those that the generator was trained on.
        DataError: If they cannot be used.
    """
    against = suite.against
    if against is None and subject.trained is None:
        raise ConfigError([f"{subject.path}: a folder needs real images: against=FOLDER, EXPERIMENT or RUN"])
    if against is not None and Path(against).is_dir() and not (Path(against) / "config.yaml").is_file():
        if _translates(subject):
            raise ConfigError([f"against={against}: a folder holds no sources; {TRANSLATE}"])
        _refuse(suite, "a folder has no splits and no settings", "split", "data")
        return Path(against)
    _refuse(suite, "these are for folders of real images", "groups", "held_out", "value_range", "size")
    if against is None:
        assert subject.trained is not None
        data = data_of(experiment_of(subject.trained.config), suite.data)
        if differences := _differences(data, subject.trained):
            raise ConfigError(
                [
                    f"the data is not what the run was trained on ({differences}); set data.root=..., or name other "
                    "real images with against=..."
                ]
            )
    else:
        config = recorded_config(Path(against)) if Path(against).is_dir() else config_files.load(against)
        data = data_of(experiment_of(config), suite.data)
    if not data.size(suite.split):
        full = " or ".join(split for split in ("train", "val", "test") if data.size(split))
        raise ConfigError([f"split={suite.split}: the split has no images; take {full}"])
    if _translates(subject):
        _check_sources(suite, data)
    return data


def sets_of(suite: Suite, subject: Subject, data: ImageDataModule | Path) -> Sets:
    """Return the sets of images that are compared, after a look at the first of each.

    Raises:
        ConfigError: If generated and real images do not fit each other, patients or files of the training images are
            held out, or real files are judged.
        DataError: If a file cannot be used.
    """
    seed, images = suite.seed, suite.images
    hashes = cache_dir(data) / "hashes" / "folders.json"
    train: ImageSet | None = None
    held_out: ImageSet | None = None
    if isinstance(data, ImageDataModule):
        real: ImageSet = RealImages(data, [suite.split], seed, images)
        # Of a run only the images that it has seen; of a folder those that the user names. A translation resembles the
        # target of its source, of training and of others alike: what is near to training images says nothing there.
        if not _translates(subject) and (subject.trained is None or not _differences(data, subject.trained)):
            train, held_out = RealImages(data, ["train"], seed), RealImages(data, ["val", "test"], seed)
    else:
        size = suite.size or (_size_of(subject.trained) if subject.trained else None)
        groups = Path(suite.groups) if suite.groups else None
        about = groups if suite.attributes else None
        folder = partial(
            FolderImages, seed=seed, groups=groups, value_range=suite.value_range, hashes=hashes, attributes=about
        )
        real = folder(data, at_most=images, size=size, pad=suite.pad)
        if suite.held_out is not None:
            train = folder(data, size=real.size, pad=suite.pad)
            held_out = folder(Path(suite.held_out), size=real.size, pad=suite.pad, role="held-out")
            _check_held_out(train, held_out, groups)
    if subject.trained is not None:
        _refuse(suite, "these are for a folder that is evaluated", "generated_value_range", "generated_labels")
        if isinstance(data, ImageDataModule):
            _refuse(suite, "this is for folders of images", "pad")
        generated = _made(suite, subject.trained, real)
    else:
        value_range = suite.generated_value_range
        labels = Path(suite.generated_labels) if suite.generated_labels else None
        generated = FolderImages(
            subject.path, seed, len(real), None, value_range, real.size, hashes, "generated", suite.pad, labels
        )
        _check_new(generated, [real, train, held_out])
    _check_fit(real, generated)
    warnings = _warnings(real, generated, held_out)
    if isinstance(data, ImageDataModule) and isinstance(generated, TranslatedImages) and suite.split == "train":
        if not _differences(data, generated.trained):
            known = "the translator was trained on these sources: split=val or test shows what it does to new ones"
            warnings += (known,)
    for warning in warnings:
        log.warning("warning: %s", warning)
    return Sets(real, generated, train, held_out if held_out is not None and len(held_out) else None, warnings)


def _made(suite: Suite, trained: Trained[Any], real: ImageSet) -> ImageSet:
    """Return what a run makes: as many images as there are real ones, or translations."""
    if not can(trained.module, Translates):
        return GeneratedImages(trained, len(real), suite.seed, suite.truncation)
    if suite.name == PRIVACY:
        raise ConfigError(
            [
                f"suite={PRIVACY}: asks whether images made of nothing resemble training images; a translation "
                "resembles the target of its source, and is that patient's data"
            ]
        )
    if suite.truncation != 1.0:
        raise ConfigError([f"truncation={suite.truncation:g}: a translator has no latents to truncate"])
    assert isinstance(real, RealImages)
    return TranslatedImages(trained, real, suite.seed)


def _translates(subject: Subject) -> bool:
    return subject.trained is not None and can(subject.trained.module, Translates)


def _check_sources(suite: Suite, data: ImageDataModule) -> None:
    """Raise ConfigError unless a split has sources for a translator."""
    if not can(data, RealPairs):
        raise ConfigError([f"against={suite.against}: {type(data).__name__} holds no sources; {TRANSLATE}"])
    if not data.source_size(suite.split):
        raise ConfigError([f"split={suite.split}: the split has no sources; name another"])


def cache_dir(data: ImageDataModule | Path) -> Path:
    """Return where what is computed from patients' images is kept."""
    if isinstance(data, ImageDataModule):
        return data.cache_dir
    return image_cache()


def _refuse(suite: Suite, why: str, *names: str) -> None:
    usual = {"split": "train", "data": {}, "pad": False}
    given = [name for name in names if getattr(suite, name) != usual.get(name)]
    if given:
        raise ConfigError([f"{', '.join(given)}: {why}"])


def _differences(data: ImageDataModule, trained: Trained[Any]) -> str:
    """Return in what a data set is not the one that a run was trained on, or nothing."""
    before, now = trained.module.data_facts, data.facts()
    keys = ("data_set", "images", "fingerprint", "source", "paired")  # the last two of pairs only
    changed = [key for key in keys if before.get(key) != now.get(key)]
    said = [f"{key}: was {before.get(key)}, is {now.get(key)}" for key in changed]
    since = [rule for rule in now["reading"] if rule not in before.get("reading", [])]
    if said and since:  # which is perhaps why
        said.append(f"files are read by other rules since then: {', '.join(since)}")
    return "; ".join(said)


def _size_of(trained: Trained[Any]) -> tuple[int, int]:
    return trained.module.image_size


def _check_held_out(train: FolderImages, held_out: FolderImages, groups: Path | None) -> None:
    problems = []
    shared = sorted(train.patients.keys() & held_out.patients.keys()) if groups else []
    if shared:
        example = held_out.patients[shared[0]]
        problems.append(
            f"held_out={held_out.folder}: {len(shared)} of its {len(held_out.patients)} patients also have images "
            f"in against={train.folder}, e.g. {example}; hold out whole patients, and see to it that no file of one "
            f"folder is called as one of the other, for groups={groups} gives both the same patient"
        )
    problems += overlap(held_out.file_set, train.file_set)
    if problems:
        raise ConfigError(problems)


def _check_new(generated: FolderImages, others: Sequence[ImageSet | None]) -> None:
    """Refuse generated images that are files of real ones."""
    files = [images.file_set for images in others if isinstance(images, FolderImages | RealImages)]
    problems = [problem for theirs in files for problem in overlap(generated.file_set, theirs)]
    if problems:
        raise ConfigError(problems[:1])  # the training images are those of ``against`` again


def _warnings(real: ImageSet, generated: ImageSet, held_out: ImageSet | None) -> tuple[str, ...]:
    """Return what the user has to know of folders, before any score is taken."""
    folders = [images for images in (real, held_out, generated) if isinstance(images, FolderImages)]
    said = [sentence for images in folders for sentence in images.said]
    if folders:  # a data set and a generator that was trained on it have one range
        shares = [share_used(map(ends_of, _first_images(images))) for images in (real, generated)]
        keys = [(real, "value_range"), (generated, "generated_value_range")]
        settings = [key for images, key in keys if isinstance(images, FolderImages)]
        said.append(unlike_shares(shares[0], shares[1], *settings))
    return tuple(sentence for sentence in said if sentence)


def _first_images(images: ImageSet) -> Iterator[np.ndarray]:
    for start in range(0, min(LOOKED_AT, len(images)), TOGETHER):
        yield from images.read(start, min(start + TOGETHER, len(images))).numpy()


def _check_fit(real: ImageSet, generated: ImageSet) -> None:
    try:
        first = generated.read(0, 1)
    except (ValueError, RuntimeError) as error:  # e.g. a truncation that the family does not know, or a size
        raise ConfigError([f"{generated.what}: {' '.join(str(error).split())[:300]}"]) from error
    if not first.isfinite().all():
        raise ConfigError(["the generator makes values that are not finite: training has diverged"])
    expected = real.read(0, 1)
    if first.shape != expected.shape:
        (c, h, w), (channels, height, width) = first.shape[1:], expected.shape[1:]
        raise ConfigError(
            [f"generated images have {c} channels of {h}x{w} pixels, real ones {channels} of {height}x{width}"]
        )
