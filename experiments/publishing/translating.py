"""Translating files: each is a function of translator, seed, source and its place, whoever makes it."""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor, from_numpy
from tqdm import tqdm

from datamodules.decoding.value_range import Range
from datamodules.files.errors import DataError, UnreadableImageError
from datamodules.files.files import find_files, in_threads
from datamodules.records.versions import name_ending, rules_of
from datamodules.writing.writers import NOTICE_OF_TRANSLATION
from experiments.configuration.errors import ConfigError
from experiments.measuring.folders import SUFFIXES as READ
from experiments.measuring.folders import Size, image_cache, read_image, text_of_size
from experiments.publishing.image_folder import SETTINGS, TABLE, ImageFolder, file_hash
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
from experiments.record.loading import load_trained, translated, unfinished
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


@dataclass(frozen=True)
class Source:
    """A file that is translated.

    Attributes:
        path: The file.
        name: Its path below the folder.
        sha256: Hash of its bytes.
    """

    path: Path
    name: str
    sha256: str


def translate_files(request: Request, stopped: Callable[[], bool] = lambda: False) -> Outcome:
    """Translate what a folder lacks of the images of another.

    Every source is read, and one of each size translated, before anything is written.

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
        sources = _sources(request.input)
        names = _names(sources, SUFFIXES[request.format])
        maker = Maker(request, sources)
        maker.check()
        told = {
            "source": [source.name for source in sources],
            "source_sha256": [source.sha256 for source in sources],
        }
        images = ImageFolder(request.output, _settings(maker), names, told)
        return make_missing(maker, images, _tasks, stopped, unfinished(maker.trained.module))


class Maker:
    """Translates files.

    Args:
        request: What is to be translated.
        sources: The files, in order.

    Raises:
        ConfigError: If the run cannot be loaded, or is no translator of grey images.
    """

    def __init__(self, request: Request, sources: Sequence[Source]) -> None:
        self.request, self.sources = request, sources
        self.trained = load_trained(request.path, request.device, Translates)
        channels = self.trained.module.source_channels
        if channels != 1:
            raise ConfigError([f"{request.path}: its sources have {channels} channels, files are read as grey images"])

    def again(self) -> Callable[[], "Maker"]:
        """Return what builds this maker in another process."""
        return partial(Maker, replace(self.request, path=self.trained.checkpoint), self.sources)

    def check(self) -> None:
        """Refuse what cannot be done, before any file is written.

        Raises:
            ConfigError: If the format does not fit, the output lies in the run directory, or images are not finite.
            DataError: If a source cannot be read, or one of its size not be translated.
        """
        check_format(self.request.format, self.trained.module.image_channels)
        if self.request.output.resolve().is_relative_to(self.trained.directory.resolve()):
            raise ConfigError(
                [
                    f"--output {self.request.output}: lies in the run directory, which can be handed on, and "
                    "translations and their names may show patients; name a folder elsewhere"
                ]
            )
        for place in self._place_of_each_size().values():
            self.image(place)

    def image(self, index: int) -> Tensor:
        """Return the translation (C, H, W) of a file, in [-1, 1]."""
        source, module = self._read(index), self.trained.module
        size = text_of_size(source.shape[1:])
        what = f"{self.sources[index].name}: the translator, trained at {text_of_size(module.image_size)} pixels,"
        try:
            image = next(translated(module, [source], self.request.seed, index))
        except (ValueError, RuntimeError) as error:  # e.g. sides that it cannot halve
            raise DataError(f"{what} cannot take {size} ({' '.join(str(error).split())[:300]})") from error
        if image.shape[1:] != source.shape[1:]:
            raise DataError(f"{what} makes {text_of_size(image.shape[1:])} of {size}: it cannot take this size")
        check_finite(image, self.trained)
        return image

    def write(self, indices: Sequence[int], file: Callable[[int], Path], stopped: Callable[[], bool]) -> dict[int, str]:
        """Translate the files of some indices, and return the SHA-256 of each that was written before the stop."""
        hashes: dict[int, str] = {}
        for i in indices:
            if stopped():
                break
            if file_hash(self.sources[i].path) != self.sources[i].sha256:
                raise DataError(f"{self.sources[i].name}: has changed while the folder was translated; begin anew")
            form, intensity = self.request.format, self.trained.intensity
            # Nothing of the source is said in the file: its name may be a patient's.
            description = description_of(self.trained, self.request.seed)
            hashes[i] = write_image(self.image(i), file(i), form, intensity, description, i, translated=True)
        return hashes

    def _read(self, index: int) -> Tensor:
        path = self.sources[index].path
        return from_numpy(read_image(path, self.request.value_range, "--value-range")).clamp(-1.0, 1.0)

    def _place_of_each_size(self) -> dict[Size, int]:
        """Read every source, and return where the first one of each height and width is."""

        def size(index: int) -> Size | UnreadableImageError:
            try:
                _, height, width = self._read(index).shape
                return height, width
            except UnreadableImageError as error:
                return error

        count = len(self.sources)
        with ThreadPoolExecutor() as pool:
            read = pool.map(size, range(count))
            found = list(tqdm(read, "reading", count, unit="image", leave=False, disable=None))
        errors = [error for error in found if isinstance(error, UnreadableImageError)]
        if errors:
            raise DataError(f"{len(errors)} of {count} images cannot be read, e.g. {errors[0]}; repair or remove them")
        return {size: place for place, size in reversed(list(enumerate(found))) if not isinstance(size, DataError)}


def _check_folders(request: Request) -> None:
    """Refuse folders of which one lies in the other: translations would be translated next time."""
    if not request.input.is_dir():
        raise ConfigError([f"{request.input}: is no folder of images"])
    source, target = request.input.resolve(), request.output.resolve()
    if source.is_relative_to(target) or target.is_relative_to(source):
        raise ConfigError(
            [f"--output {request.output}: lies in the folder of the sources, or these in it; name another"]
        )


def _sources(folder: Path) -> list[Source]:
    """Return the images below a folder, sorted by name."""
    files = find_files(folder, READ)
    if not files:
        raise ConfigError([f"{folder}: holds no image ({', '.join(sorted(READ))})"])
    return in_threads(lambda path: Source(path, path.relative_to(folder).as_posix(), _content(path)), files)


def _content(path: Path) -> str:
    """Return the SHA-256 of a file, from its bytes; of one that cannot be opened nothing: reading it says why."""
    try:
        return file_hash(path)
    except OSError:
        return ""


def _names(sources: Sequence[Source], suffix: str) -> list[str]:
    """Return the names of translations below their folder: those of the sources, with another ending."""
    names = [Path(source.name).with_suffix(suffix).as_posix() for source in sources]
    first: dict[str, str] = {}
    for name, source in zip(names, sources, strict=True):
        other = first.setdefault(name.casefold(), source.name)  # some file systems know no capital letters
        if other != source.name:
            raise ConfigError([f"{other} and {source.name}: both would be written as {name}; rename one"])
    files = {*first, SETTINGS, TABLE}
    for name, source in zip(names, sources, strict=True):
        if folders := [parent for parent in Path(name).parents if parent.as_posix().casefold() in files]:
            raise ConfigError([f"{source.name}: a file is to be written as {folders[0]}, too; rename the folder"])
    return names


def _settings(maker: Maker) -> dict[str, object]:
    """Return what the contents of the files depend on."""
    named = [(source.name, source.sha256) for source in maker.sources]
    paths, contents = [source.path for source in maker.sources], [source.sha256 for source in maker.sources]
    return settings_of(maker.request, maker.trained) | {
        "notice": NOTICE_OF_TRANSLATION,
        "value_range": maker.request.value_range,
        "reading": name_ending(rules_of(paths, contents, image_cache() / "hashes" / "folders-rules.json")),
        "sources_sha256": hashlib.sha256(json.dumps(named).encode()).hexdigest(),
    }


def _tasks(missing: list[int]) -> list[list[int]]:
    return [missing[start : start + TOGETHER] for start in range(0, len(missing), TOGETHER)]
