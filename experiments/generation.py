"""Generating files: each image is a function of generator, seed and index, whoever makes it and in whatever company."""

import os
import platform
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import groupby
from multiprocessing import connection, get_context, parent_process
from multiprocessing.synchronize import Event
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.writers import DICOM_VERSION, NOTICE, write_dicom, write_png8, write_png16
from experiments.config import ConfigError, did_you_mean
from experiments.image_folder import ImageFolder, file_hash
from experiments.loading import Trained, generate, load_run, unfinished
from experiments.run_directory import refuse_links, versions
from lightning_modules.networks.latents import chunk_size

NO_LABEL = "none"  # asks for images that show no finding; without labels, images show what training images do
CHANNELS = {"png8": (1, 3), "png16": (1,), "dicom": (1,)}


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


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        folder: Where the images are.
        made: Images that were made now; the others were there.
        missing: Images that a signal left to be made.
        note: What the user should know of the images; may be empty.
    """

    folder: Path
    made: int
    missing: int
    note: str


class ProcessLostError(RuntimeError):
    """A process that generates has died."""


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
    with _one_thread():
        maker = Maker(request)
        trained = maker.trained
        folder = _folder(request, trained)
        _check(request, maker)
        suffix = ".dcm" if request.format == "dicom" else ".png"
        images = ImageFolder(folder, _settings(request, maker), suffix, request.count, maker.shown(request.count))
        made = 0
        with images.opened():
            missing = images.missing(lambda indices: tqdm(indices, "checking", unit="image", leave=False, disable=None))
            tasks = _tasks(missing, request.batch_size, maker.chunk)
            with tqdm(total=request.count, initial=request.count - len(missing), unit="image", disable=None) as bar:
                for hashes in _run(maker, images, tasks, stopped):
                    images.add(hashes)
                    made += len(hashes)
                    bar.update(len(hashes))
    return Outcome(folder, made, len(missing) - made, unfinished(maker.trained.module))


class Maker:
    """Makes images of one generator and writes them."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.trained = load_run(request.path, request.device)
        module = self.trained.module
        self.labels = _multi_hot(request.labels, module.classes or module.data_facts.get("classes"))
        self.resolution = module.schedule.at(module.images_seen).resolution
        self.chunk = chunk_size(self.resolution)

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

    def write(self, indices: list[int], file: Callable[[int], Path], stopped: Callable[[], bool]) -> dict[int, str]:
        """Write the images of some indices, and return the SHA-256 of each that was written before the stop."""
        hashes: dict[int, str] = {}
        for chunk, members in groupby(indices, key=lambda i: i // self.chunk):
            if stopped():
                break
            _, images = next(self.images(chunk * self.chunk, self.chunk))
            for i in members:
                self._write(images[i % self.chunk], file(i), i)
                hashes[i] = file_hash(file(i))
        return hashes

    def _write(self, image: Tensor, path: Path, index: int) -> None:
        intensity = self.trained.intensity
        if self.request.format == "dicom":
            write_dicom(image, path, intensity, self._description(), index)
        else:
            (write_png16 if self.request.format == "png16" else write_png8)(image, path, intensity)

    def _description(self) -> str:
        trained, request = self.trained, self.request
        labels = f", labels {' and '.join(request.labels)}" if request.labels else ""
        return (
            f"{type(trained.module).__name__} trained on {trained.module.data_facts.get('data_set', 'unknown data')}, "
            f"weights {trained.weights_sha256[:16]}, seed {request.seed}, truncation {request.truncation:g}{labels}"
        )


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
    channels = maker.trained.module.image_channels
    if channels not in CHANNELS[request.format]:
        able = [name for name, allowed in CHANNELS.items() if channels in allowed]
        what = f"; use {' or '.join(able)}" if able else ", and no other format does"
        raise ConfigError([f"--format {request.format}: holds no images of {channels} channels{what}"])
    try:
        _, images = next(maker.images(0, 1))
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    if not images.isfinite().all():
        raise ConfigError([f"{maker.trained.checkpoint}: its generator makes values that are not finite"])


def _settings(request: Request, maker: Maker) -> dict[str, Any]:
    """Return what the contents of the files depend on."""
    trained, module = maker.trained, maker.trained.module
    point = module.schedule.at(module.images_seen)
    packages = ["torch", "numpy", "pillow", *(["pydicom"] if request.format == "dicom" else [])]
    recorded = versions()
    return {
        "synthetic": True,
        "notice": NOTICE,
        "experiment": trained.config["name"],
        "run": trained.directory.name,
        "data_set": module.data_facts.get("data_set"),
        "family": type(module).__name__,
        "images_seen": module.images_seen,
        "stage": point.stage,
        "alpha": point.alpha,
        "weights_sha256": trained.weights_sha256,
        "seed": request.seed,
        "truncation": request.truncation,
        "labels": list(request.labels),
        "format": request.format,
        **({"dicom_version": DICOM_VERSION} if request.format == "dicom" else {}),
        "resolution": list(maker.resolution),
        "channels": module.image_channels,
        "intensity": asdict(trained.intensity),
        "chunk": maker.chunk,
        "device": _device_name(request.device),
        "versions": {
            "python": platform.python_version(),
            "mirage-gan": recorded["mirage-gan"],
            "git_commit": recorded["git_commit"],
            "git_changes": recorded["git_changes"],
            **{name: version(name) for name in packages},
        },
    }


def _device_name(device: str) -> str:
    """Return what last bits depend on: a GPU's model, or the instructions that a CPU computes with."""
    if device == "cuda":
        return f"cuda ({torch.cuda.get_device_name()})"
    return f"cpu ({torch.backends.cpu.get_cpu_capability()})"


def _tasks(missing: list[int], batch_size: int, chunk: int) -> list[list[int]]:
    """Return indices in groups that share no chunk."""
    size = -(-batch_size // chunk) * chunk
    return [list(members) for _, members in groupby(missing, key=lambda i: i // size)]


def _run(
    maker: Maker, images: ImageFolder, tasks: list[list[int]], stopped: Callable[[], bool]
) -> Iterator[dict[int, str]]:
    """Yield the hashes of what each task has written."""
    if min(maker.request.processes, len(tasks)) > 1:
        yield from _run_in_processes(maker, images, tasks, stopped)
        return
    for task in tasks:
        if stopped():
            return
        yield maker.write(task, images.file, stopped)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread: how many there are must not decide the order of sums. Processes share the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Several processes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """What a process is told when it starts."""

    request: Request
    checkpoint: Path
    weights_sha256: str
    images: ImageFolder
    stop: Event


_work: _Work
_maker: Maker | None = None


def _run_in_processes(
    maker: Maker, images: ImageFolder, tasks: list[list[int]], stopped: Callable[[], bool]
) -> Iterator[dict[int, str]]:
    context = get_context("spawn")
    stop = context.Event()
    work = _Work(maker.request, maker.trained.checkpoint, maker.trained.weights_sha256, images, stop)
    processes = min(maker.request.processes, len(tasks))
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(work,)) as pool:
        pending = {pool.submit(_write_task, task) for task in tasks}
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                if stopped() and not stop.is_set():
                    stop.set()
                    pending = {future for future in pending if not future.cancel()}
        except BrokenProcessPool as error:
            if not stopped():  # a signal to the whole group ends them, too
                raise ProcessLostError(
                    "a process that generates has died (killed, or out of memory); what it has written is kept"
                ) from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _begin(work: _Work) -> None:
    """Start a process: it leaves Ctrl-C to the first process, and ends with it."""
    global _work
    _work = work
    signal(SIGINT, SIG_IGN)
    torch.set_num_threads(1)
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def _write_task(indices: list[int]) -> dict[int, str]:
    global _maker
    if _work.stop.is_set():
        return {}
    if _maker is None:
        maker = Maker(Request(**{**vars(_work.request), "path": _work.checkpoint}))
        if maker.trained.weights_sha256 != _work.weights_sha256:
            raise ProcessLostError(f"{_work.checkpoint}: has changed while images were generated from it")
        _maker = maker
    return _maker.write(indices, _work.images.file, _work.stop.is_set)
