"""Translating files: each is a function of translator, seed, source and its place, whoever makes it."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, from_numpy

from datamodules.cache import content_hashes
from datamodules.errors import DataError
from datamodules.files import find_files
from datamodules.value_range import Range
from experiments.config import ConfigError
from experiments.folders import SUFFIXES as READ
from experiments.folders import image_cache, read_image, sizes_of
from experiments.image_folder import ImageFolder, file_hash
from experiments.loading import load_trained, translated, unfinished
from experiments.making import SUFFIXES, Outcome, check_format, make_missing, one_thread, settings_of, write_image
from lightning_modules.protocols import Translates

TOGETHER = 16  # files between two looks at signals and the record


@dataclass(frozen=True)
class Request:
    """What is to be translated.

    Attributes:
        path: A run directory or a checkpoint.
        input: Folder of the sources, grey PNG, JPEG, TIFF, BMP and DICOM files, at any depth.
        output: Folder of the translations, one for each file, under its name.
        seed: Of what a noisy network draws.
        value_range: Values of the files that become -1 and 1; None = what they say (see ``read_image``).
        format: "png8", "png16" or "dicom".
        processes: Number of processes; changes no image.
        device: "cpu" or "cuda".
    """

    path: Path
    input: Path
    output: Path
    seed: int = 0
    value_range: Range | None = None
    format: str = "png8"
    processes: int = 1
    device: str = "cpu"


def translate_files(request: Request, stopped: Callable[[], bool] = lambda: False) -> Outcome:
    """Translate what a folder lacks of the images of another.

    Args:
        request: What is to be translated.
        stopped: Asked between images; true = end in good order, the same request goes on later.

    Raises:
        ConfigError: If the translator cannot do what is asked for, or the folder holds other images.
        DataError: If a source cannot be read, or not be translated.
        ProcessLostError: If a process died.
        OSError: If a file cannot be written.
    """
    request = replace(request, input=request.input.absolute(), output=request.output.absolute())
    _check_folders(request)
    with one_thread():
        maker = Maker(request)
        check_format(request.format, maker.trained.module.image_channels)
        sources = [path.relative_to(request.input).as_posix() for path in maker.files]
        names = _names(sources, SUFFIXES[request.format])
        contents = content_hashes(maker.files, image_cache() / "hashes" / "folders.json")
        sizes_of(request.input, maker.files)
        maker.image(0)  # what the translator refuses is refused before any file
        settings = settings_of(request, maker.trained) | {
            "value_range": request.value_range,
            "sources_sha256": hashlib.sha256("".join(sources + contents).encode()).hexdigest(),
        }
        images = ImageFolder(request.output, settings, names, {"source": sources, "source_sha256": contents})
        return make_missing(maker, images, _tasks, stopped, unfinished(maker.trained.module))


class Maker:
    """Translates the files of a folder."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.trained = load_trained(request.path, request.device, Translates)
        self.files = find_files(request.input, READ)
        if not self.files:
            raise ConfigError([f"{request.input}: holds no image ({', '.join(sorted(READ))})"])
        channels = self.trained.module.source_channels
        if channels != 1:
            raise ConfigError([f"{request.path}: its sources have {channels} channels, files are read as grey images"])

    def image(self, index: int) -> Tensor:
        """Return the translation (C, H, W) of a file, in [-1, 1]."""
        path = self.files[index]
        source = from_numpy(read_image(path, self.request.value_range, "--value-range")).clamp(-1.0, 1.0)
        try:
            image = next(translated(self.trained.module, [source], self.request.seed, index))
        except (ValueError, RuntimeError) as error:  # e.g. sides that it cannot halve
            height, width = source.shape[1:]
            what = " ".join(str(error).split())[:300]
            raise DataError(f"{path}: {height}x{width} pixels cannot be translated ({what})") from error
        if not image.isfinite().all():
            raise ConfigError([f"{self.trained.checkpoint}: its generator makes values that are not finite"])
        return image

    def write(self, indices: Sequence[int], file: Callable[[int], Path], stopped: Callable[[], bool]) -> dict[int, str]:
        """Translate the files of some indices, and return the SHA-256 of each that was written before the stop."""
        hashes: dict[int, str] = {}
        for i in indices:
            if stopped():
                break
            file(i).parent.mkdir(parents=True, exist_ok=True)
            write_image(self.image(i), file(i), self.request.format, self.trained.intensity, self._description(), i)
            hashes[i] = file_hash(file(i))
        return hashes

    def _description(self) -> str:
        """Return what made an image; nothing of the source, whose name may be a patient's."""
        trained = self.trained
        data = trained.module.data_facts.get("data_set", "unknown data")
        return (
            f"{type(trained.module).__name__} trained on {data}, weights {trained.weights_sha256[:16]}, seed "
            f"{self.request.seed}, translated from another image"
        )


def _check_folders(request: Request) -> None:
    """Refuse folders of which one lies in the other: translations would be translated next time."""
    if not request.input.is_dir():
        raise ConfigError([f"{request.input}: is no folder of images"])
    source, target = request.input.resolve(), request.output.resolve()
    if source.is_relative_to(target) or target.is_relative_to(source):
        raise ConfigError(
            [f"--output {request.output}: lies in the folder of the sources, or these in it; name another"]
        )


def _names(sources: list[str], suffix: str) -> list[str]:
    """Return the names of translations below their folder: those of the sources, with another ending."""
    names = [Path(source).with_suffix(suffix).as_posix() for source in sources]
    first: dict[str, str] = {}
    for name, source in zip(names, sources, strict=True):
        if first.setdefault(name, source) != source:
            raise ConfigError([f"{first[name]} and {source}: both would be written as {name}; rename one"])
    return names


def _tasks(missing: list[int]) -> list[list[int]]:
    return [missing[start : start + TOGETHER] for start in range(0, len(missing), TOGETHER)]
