"""Generating files: each image is a function of generator, seed and index, in whatever company it is made."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.configuration.errors import ConfigError, did_you_mean
from experiments.publishing.image_folder import ImageFolder
from experiments.publishing.making import (
    SUFFIXES,
    Outcome,
    check_finite,
    check_format,
    description_of,
    make_missing,
    one_thread,
    settings_of,
    write_image,
)
from experiments.record.loading import Trained, generate, load_run, unfinished
from experiments.record.run_directory import refuse_links
from lightning_modules.networks.latents import chunk_size

NO_LABEL = "none"  # asks for images that show no finding; without labels, images show what training images do


@dataclass(frozen=True)
class Request:
    """What is to be generated.

    Attributes:
        path: A run directory or a checkpoint.
        count: Number of images.
        seed: Names the list of images.
        truncation: Factor on the latents.
        labels: Names of the classes that the images are to show.
        format: "png8", "png16" or "dicom".
        output: The folder; None = ``RUN/generated/<format>-seed<seed>``, for a checkpoint with its name in front.
        batch_size: Images between two looks at signals and the record, rounded up to whole chunks; changes no image.
        processes: Number of processes; changes no image.
        device: "cpu" or "cuda".
    """

    path: Path
    count: int
    seed: int = 0
    truncation: float = 1.0
    labels: tuple[str, ...] = ()
    format: str = "png8"
    output: Path | None = None
    batch_size: int = 64
    processes: int = 1
    device: str = "cpu"


def generate_files(request: Request, stopped: Callable[[], bool] = lambda: False) -> Outcome:
    """Generate what a folder lacks of the images that are asked for.

    Args:
        request: What is to be generated.
        stopped: Asked between chunks; true = end in good order, the same request goes on later.

    Raises:
        ConfigError: If the generator cannot do what is asked for, or the folder holds other images. Nothing is written.
        ProcessLostError: If a process died.
        OSError: If a file cannot be written.
    """
    with one_thread():
        maker = Maker(request)
        folder = _folder(request, maker.trained)
        _check(request, maker)
        names = [f"{i:06d}{SUFFIXES[request.format]}" for i in range(request.count)]
        images = ImageFolder(folder, _settings(request, maker), names, {"labels": maker.shown(request.count)})
        tasks = partial(_tasks, batch_size=request.batch_size, chunk=maker.chunk)
        return make_missing(maker, images, tasks, stopped, unfinished(maker.trained.module))


class Maker:
    """Makes images of one generator and writes them."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.trained = load_run(request.path, request.device)
        module = self.trained.module
        self.labels = _multi_hot(request.labels, module.classes or module.data_facts.get("classes"))
        self.resolution = module.schedule.at(module.images_seen).resolution
        self.chunk = chunk_size(self.resolution)

    def again(self) -> Callable[[], "Maker"]:
        """Return what builds this maker in another process."""
        return partial(Maker, replace(self.request, path=self.trained.checkpoint))

    def images(self, start: int, count: int) -> Iterator[tuple[int, Tensor]]:
        """Yield images with the first index of each batch."""
        request = self.request
        return generate(self.trained.module, start, count, request.seed, request.truncation, self.labels)

    def shown(self, count: int) -> list[str]:
        """Return the labels that images 0 .. count - 1 show, each image's joined by "|"."""
        module, asked = self.trained.module, "|".join(name for name in self.request.labels if name != NO_LABEL)
        drawn = None if self.labels is not None else module.sample_labels(count, self.request.seed)
        if drawn is None:
            return [asked] * count
        return ["|".join(name for name, has in zip(module.classes, row, strict=True) if has) for row in drawn.tolist()]

    def write(self, indices: Sequence[int], file: Callable[[int], Path], stopped: Callable[[], bool]) -> dict[int, str]:
        """Write the images of some indices, and return the SHA-256 of each that was written before the stop."""
        hashes: dict[int, str] = {}
        for chunk, members in groupby(indices, key=lambda i: i // self.chunk):
            if stopped():
                break
            _, images = next(self.images(chunk * self.chunk, self.chunk))
            for i in members:
                form, intensity = self.request.format, self.trained.intensity
                hashes[i] = write_image(images[i % self.chunk], file(i), form, intensity, self._description(), i)
        return hashes

    def _description(self) -> str:
        request = self.request
        labels = f", labels {' and '.join(request.labels)}" if request.labels else ""
        return f"{description_of(self.trained, request.seed)}, truncation {request.truncation:g}{labels}"


def _folder(request: Request, trained: Trained) -> Path:
    if request.output is not None:
        return request.output.absolute()
    refuse_links(trained.directory)
    prefix = "" if request.path.is_dir() else f"{trained.checkpoint.stem}-"
    return trained.directory / "generated" / f"{prefix}{request.format}-seed{request.seed}"


def _multi_hot(labels: tuple[str, ...], classes: Any) -> Tensor | None:
    """Return one row (K,), or None without labels; columns are the family's classes, else the data set's."""
    if not labels:
        return None
    known = [str(name) for name in classes or ()]
    if not known:
        raise ConfigError([f"--labels {','.join(labels)}: the data set has no classes"])
    if labels == (NO_LABEL,) and NO_LABEL not in known:
        return torch.zeros(len(known))
    problems = [
        f"--labels: the data set has no class {name!r}{did_you_mean(name, known) or '; it has ' + ', '.join(known)}"
        for name in labels
        if name not in known
    ]
    if problems:
        raise ConfigError(problems)
    return torch.tensor([float(name in labels) for name in known])


def _check(request: Request, maker: Maker) -> None:
    """Make the first image, before any file: what the generator or the format refuses is refused here."""
    check_format(request.format, maker.trained.module.image_channels)
    try:
        _, images = next(maker.images(0, 1))
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    check_finite(images, maker.trained)


def _settings(request: Request, maker: Maker) -> dict[str, Any]:
    """Return what the contents of the files depend on."""
    return {
        **settings_of(request, maker.trained),
        "truncation": request.truncation,
        "labels": list(request.labels),
        "resolution": list(maker.resolution),
        "chunk": maker.chunk,
    }


def _tasks(missing: list[int], batch_size: int, chunk: int) -> list[list[int]]:
    """Return indices in groups that share no chunk."""
    size = -(-batch_size // chunk) * chunk
    return [list(members) for _, members in groupby(missing, key=lambda i: i // size)]
