"""Making files with one process or several: each file is a function of a request and its index, whoever makes it."""

import os
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import connection, get_context, parent_process
from multiprocessing.synchronize import Event
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.records.records import Intensity
from datamodules.writing.writers import DICOM_VERSION, NOTICE, write_dicom, write_png8, write_png16
from experiments.configuration.errors import ConfigError
from experiments.publishing.image_folder import ImageFolder, file_hash
from experiments.record.loading import Trained
from experiments.record.run_directory import versions


class Maker(Protocol):
    """Makes files of one checkpoint."""

    request: Any  # a dataclass with ``path``, a run or a checkpoint, and ``processes``
    trained: Trained[Any]

    def again(self) -> "Callable[[], Maker]":
        """Return what builds this maker in another process, from the checkpoint that was loaded."""
        ...

    def write(self, indices: Sequence[int], file: Callable[[int], Path], stopped: Callable[[], bool]) -> dict[int, str]:
        """Write the files of some indices, and return the SHA-256 of each that was written before the stop."""
        ...


CHANNELS = {"png8": (1, 3), "png16": (1,), "dicom": (1,)}
SUFFIXES = {"png8": ".png", "png16": ".png", "dicom": ".dcm"}


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
    """A process that makes images has died."""


def make_missing(
    maker: Maker,
    images: ImageFolder,
    tasks: Callable[[list[int]], list[list[int]]],
    stopped: Callable[[], bool],
    note: str,
) -> Outcome:
    """Make what a folder lacks.

    Args:
        maker: Makes the files.
        images: The folder.
        tasks: Deals indices out: between two tasks signals are looked at and the record is written.
        stopped: True = end in good order, the same request goes on later.
        note: For the outcome.

    Raises:
        ConfigError: If the folder holds other images.
        ProcessLostError: If a process died.
        OSError: If a file cannot be written.
    """
    made = 0
    with images.opened():
        missing = images.missing(lambda indices: tqdm(indices, "checking", unit="image", leave=False, disable=None))
        with tqdm(total=images.count, initial=images.count - len(missing), unit="image", disable=None) as bar:
            for hashes in _run(maker, images, tasks(missing), stopped):
                images.add(hashes)
                made += len(hashes)
                bar.update(len(hashes))
    return Outcome(images.path, made, len(missing) - made, note)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: how many there are must not decide the order of sums. Processes share the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


# The files ------------------------------------------------------------------------------------------------------------


def check_format(name: str, channels: int) -> None:
    """Raise ConfigError unless a format holds images of so many channels."""
    if channels in CHANNELS[name]:
        return
    able = [other for other, allowed in CHANNELS.items() if channels in allowed]
    what = f"; use {' or '.join(able)}" if able else ", and no other format does"
    raise ConfigError([f"--format {name}: holds no images of {channels} channels{what}"])


def check_finite(images: Tensor, trained: Trained[Any]) -> None:
    """Raise ConfigError if a generator makes values that are not finite."""
    if not images.isfinite().all():
        raise ConfigError([f"{trained.checkpoint}: its generator makes values that are not finite"])


def description_of(trained: Trained[Any], seed: int) -> str:
    """Return what made an image, for its file; nothing of a patient."""
    data = trained.module.data_facts.get("data_set", "unknown data")
    return f"{type(trained.module).__name__} trained on {data}, weights {trained.weights_sha256[:16]}, seed {seed}"


def write_image(
    image: Tensor,
    path: Path,
    name: str,
    intensity: Intensity,
    description: str,
    index: int,
    translated: bool = False,
) -> str:
    """Write an image (C, H, W) in [-1, 1] in a format, and return the SHA-256 of the file.

    The file says that it is synthetic and what its values mean.
    """
    if name == "dicom":
        write_dicom(image, path, intensity, description, index, translated)
    else:
        (write_png16 if name == "png16" else write_png8)(image, path, intensity, translated)
    return file_hash(path)


def settings_of(request: Any, trained: Trained[Any]) -> dict[str, Any]:
    """Return what the contents of all files depend on, as plain values."""
    module = trained.module
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
        "format": request.format,
        **({"dicom_version": DICOM_VERSION} if request.format == "dicom" else {}),
        "channels": module.image_channels,
        "intensity": asdict(trained.intensity),
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


# Several processes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """What a process is told when it starts."""

    build: Callable[[], Maker]
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
    work = _Work(maker.again(), maker.trained.weights_sha256, images, stop)
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
                    "a process that makes images has died (killed, or out of memory); what it has written is kept"
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
        maker = _work.build()
        if maker.trained.weights_sha256 != _work.weights_sha256:
            raise ProcessLostError(f"{maker.trained.checkpoint}: has changed while images were made from it")
        _maker = maker
    return _maker.write(indices, _work.images.file, _work.stop.is_set)
