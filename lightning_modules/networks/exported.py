"""Exported generators: a folder with weights (safetensors) and their description (JSON), loaded with plain torch.

    from lightning_modules.networks.exported import load_generator

    generator = load_generator("runs/demo/20261120-183111-72b2/export")
    images = generator.sample(16, seed=0)

Translators are exported in the same way, and loaded by ``load_translator``.

A folder may come from a stranger: nothing in it is run, it names networks of Mirage only, and it cannot make this
process take more memory than its files.

Bundles for other tools carry a copy of this package's files, so they import torch and each other only; safetensors is
imported where a file of it is read or written.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor, nn

from lightning_modules.networks import dcgan, kidney, progressive
from lightning_modules.networks.latents import (
    Grows,
    LatentGenerator,
    Noise,
    Prior,
    chunk_size,
    in_chunks,
    rows_of,
    sample_labels,
    sample_latents,
    sample_noise,
)
from lightning_modules.networks.layers import check_shape
from lightning_modules.networks.translators import Translator

# Of the folder: a reader of 1 would not know what to do with labels, one of 2 not with an image as input.
FORMAT, FORMAT_WITH_LABELS, FORMAT_OF_TRANSLATORS = 1, 2, 3
WEIGHTS, DESCRIPTION = "generator.safetensors", "generator.json"
GENERATORS: dict[str, type[LatentGenerator]] = {
    f"{network.__module__}.{network.__qualname__}": network
    for network in (dcgan.Generator, kidney.Generator, progressive.Generator)
}
TRANSLATORS: dict[str, type[Translator]] = {}  # none is shipped yet
_LARGEST_DESCRIPTION = 2**20  # bytes
_LARGEST_SIDE = 2**14  # pixels


class ExportError(ValueError):
    """A folder holds no exported network, or a network cannot be exported; the message says why."""


class ExportedGenerator(nn.Module):
    """A generator with what is needed to make the images that its run would make.

    Args:
        network: The generator, at its stage.
        prior: Distribution of its latents.
        classes: Names of the labels that it is given, in the order of its columns; empty = it is given none.
        label_rows: How many training images have each combination of labels; see ``sample_labels``.
        description: What ``generator.json`` says: intensity range, data set, versions ...
    """

    def __init__(
        self,
        network: LatentGenerator,
        prior: Prior,
        classes: Sequence[str] = (),
        label_rows: Mapping[str, int] | None = None,
        description: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if len(classes) != network.label_count or bool(classes) != bool(label_rows):
            said = f"{len(classes)}{'' if label_rows else ' without rows'}"
            raise ExportError(f"the network takes {network.label_count} labels, described are {said}")
        self.network, self.prior = network, prior
        self.classes, self.label_rows = tuple(classes), dict(label_rows or {})
        self.description = description or {}
        self.eval().requires_grad_(False)

    @property
    def latent_dim(self) -> int:
        """Length of a latent vector."""
        return arguments_of(self.network)["latent_dim"]

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the images at the present stage, in pixels."""
        return self.network.resolution

    def forward(self, latents: Tensor, labels: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        """Map latents (N, latent_dim), and labels (N, K) where there are any, to images (N, C, H, W) in [-1, 1]."""
        return self.network.from_latents(latents, labels, noise=noise).float().clamp(-1.0, 1.0)

    @torch.no_grad()
    def sample(
        self, n: int, truncation: float = 1.0, seed: int = 0, start: int = 0, labels: Tensor | None = None
    ) -> Tensor:
        """Generate images start .. start + n - 1 of the endless list that belongs to a seed.

        On a CPU these are, bit for bit, the images that ``python -m experiments.generate`` writes for the seed.

        Args:
            n: Number of images.
            truncation: See ``LatentGenerator.from_latents``.
            seed: Names the list of images.
            start: First image of the list.
            labels: Multi-hot labels (K,) that all images are given, in the order of ``classes``; None = rows of the
                training images, drawn as often as they occur there.

        Returns:
            Images (n, C, H, W) float32 in [-1, 1] on the network's device.

        Raises:
            ValueError: If ``n`` is below 1, the network cannot truncate, or it takes no such labels.
        """
        if n < 1:
            raise ValueError(f"n={n}: must be at least 1")
        if labels is not None and labels.shape != (len(self.classes),):
            raise ValueError(f"labels of shape {tuple(labels.shape)}: the network takes ({len(self.classes)},)")
        size, device = chunk_size(self.resolution), next(self.network.parameters()).device

        def labels_from(first: int) -> Tensor | None:
            if not self.classes:
                return None
            if labels is not None:
                return labels.float().expand(size, -1).to(device)
            return sample_labels(self.label_rows, self.classes, size, seed, first).to(device)

        def make(first: int) -> Tensor:
            latents = sample_latents(self.prior, size, self.latent_dim, seed, first).to(device)
            noise = sample_noise(size, seed, first, device)
            images = self.network.from_latents(latents, labels_from(first), truncation, noise)
            return images.float().clamp(-1.0, 1.0)

        return torch.cat([images for _, images in in_chunks(make, start, n, size)])


class ExportedTranslator(nn.Module):
    """A translator, from one direction of the network or its only one.

    Args:
        network: The network.
        description: What ``generator.json`` says: sources, intensity range, data set, versions ...
    """

    def __init__(self, network: Translator, description: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.network, self.description = network, description or {}
        self.eval().requires_grad_(False)

    @property
    def source_channels(self) -> int:
        """Channels of the images that it takes."""
        return arguments_of(self.network)["source_channels"]

    def forward(self, sources: Tensor, noise: Noise | None = None) -> Tensor:
        """Map sources (N, source_channels, H, W) in [-1, 1] to images (N, C, H, W) in [-1, 1]."""
        return self.network.from_sources(sources, noise).float().clamp(-1.0, 1.0)

    @torch.no_grad()
    def translate(self, sources: Tensor, seed: int = 0, start: int = 0) -> Tensor:
        """Translate images start .. start + n - 1 of a list, one by one: an image's last bits depend on its company.

        On a CPU these are, bit for bit, the images that ``python -m experiments.translate`` writes.

        Args:
            sources: Images (n, source_channels, H, W) in [-1, 1].
            seed: Of what a noisy network draws for image i, which depends on (seed, i) alone.
            start: Place of the first image in its list.

        Returns:
            Images (n, C, H, W) float32 in [-1, 1] on the network's device.

        Raises:
            ValueError: If there is no source, or they have other channels than the network takes.
        """
        if not len(sources):
            raise ValueError("no sources were given")
        check_shape(sources, self.source_channels, sources.shape[2:])
        device = next(self.network.parameters()).device
        images = [
            self(source[None].to(device), sample_noise(1, seed, place, device))
            for place, source in enumerate(sources, start)
        ]
        return torch.cat(images)


def arguments_of(network: nn.Module) -> dict[str, Any]:
    """Return the arguments that a network was built with.

    Raises:
        ExportError: If the network does not say them, or is not one that can be loaded again.
    """
    name = _name_of(network)
    arguments = getattr(network, "arguments", None)
    if name not in (*GENERATORS, *TRANSLATORS) or not isinstance(arguments, dict):
        registry = "TRANSLATORS" if isinstance(network, Translator) else "GENERATORS"
        raise ExportError(f"{name}: cannot be exported; give it ``arguments`` and add it to exported.{registry}")
    return arguments


def _name_of(network: nn.Module) -> str:
    return f"{type(network).__module__}.{type(network).__qualname__}"


def describe_translator(translator: ExportedTranslator) -> dict[str, Any]:
    """Return what ``load_translator`` needs besides the weights, as plain values."""
    arguments = arguments_of(translator.network)
    height, width = arguments["image_size"]
    return {
        "network": {"class": _name_of(translator.network), "arguments": arguments},
        "source": {"channels": arguments["source_channels"], "low": -1.0, "high": 1.0},
        "image": {"height": height, "width": width, "channels": arguments["image_channels"], "low": -1.0, "high": 1.0},
    }


def describe(generator: ExportedGenerator) -> dict[str, Any]:
    """Return what ``load_generator`` needs besides the weights, as plain values."""
    network, (height, width) = generator.network, generator.resolution
    arguments = arguments_of(network)
    stage, alpha = (network.stage, network.alpha) if isinstance(network, Grows) else (None, None)
    return {
        "network": {"class": _name_of(network), "arguments": arguments, "stage": stage, "alpha": alpha},
        "image": {"height": height, "width": width, "channels": arguments["image_channels"], "low": -1.0, "high": 1.0},
        "latents": {
            "length": generator.latent_dim,
            "prior": generator.prior,
            "truncation": generator.network.truncates,
        },
        "chunk": chunk_size(generator.resolution),
        **({"labels": {"classes": list(generator.classes), "rows": generator.label_rows}} if generator.classes else {}),
    }


def weights_of(exported: ExportedGenerator | ExportedTranslator) -> bytes:
    """Return weights and buffers of the network in the safetensors format."""
    from safetensors.torch import save

    return save({name: tensor.cpu().contiguous().clone() for name, tensor in exported.network.state_dict().items()})


def build(
    network: dict[str, Any],
    prior: Prior,
    classes: Sequence[str] = (),
    label_rows: Mapping[str, int] | None = None,
    normalises_latents: bool | None = None,
) -> ExportedGenerator:
    """Return a generator as it was described, at its stage, with random weights.

    Args:
        network: What ``describe`` says of it: class, arguments, stage, alpha.
        prior: Distribution of its latents.
        classes: See ``ExportedGenerator``.
        label_rows: See ``ExportedGenerator``.
        normalises_latents: Older bundles say it; the network knows.

    Raises:
        ExportError: If the class is none of ``GENERATORS``, or it has no such stage.
    """
    return ExportedGenerator(_built(network, "the description", GENERATORS), prior, classes, label_rows)


def load_generator(folder: str | Path) -> ExportedGenerator:
    """Load an exported generator on the CPU, in evaluation mode.

    Args:
        folder: What ``python -m experiments.export`` has written.

    Raises:
        ExportError: If a file is missing or damaged, does not fit the other, or names another network than Mirage's.
    """

    def build(said: dict[str, Any], weights: dict[str, Tensor], folder: Path) -> ExportedGenerator:
        network = _network(said["network"], weights, folder / WEIGHTS, GENERATORS)
        prior = said["latents"]["prior"]
        if prior not in get_args(Prior):
            raise ExportError(f"{folder / DESCRIPTION}: does not say how latents are drawn ({said['latents']})")
        return ExportedGenerator(network, prior, *_labels_of(said, folder / DESCRIPTION), said)

    return _loaded(Path(folder), (FORMAT, FORMAT_WITH_LABELS), build)


def load_translator(folder: str | Path) -> ExportedTranslator:
    """Load an exported translator on the CPU, in evaluation mode.

    Args:
        folder: What ``python -m experiments.export`` has written.

    Raises:
        ExportError: As of ``load_generator``.
    """

    def build(said: dict[str, Any], weights: dict[str, Tensor], folder: Path) -> ExportedTranslator:
        return ExportedTranslator(_network(said["network"], weights, folder / WEIGHTS, TRANSLATORS), said)

    return _loaded(Path(folder), (FORMAT_OF_TRANSLATORS,), build)


Exported = TypeVar("Exported", ExportedGenerator, ExportedTranslator)


def _loaded(
    folder: Path, formats: Sequence[int], build: Callable[[dict[str, Any], dict[str, Tensor], Path], Exported]
) -> Exported:
    """Return what a folder describes, built from its description and its weights."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        said = _read_description(folder / DESCRIPTION)
        content = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise ExportError(f"{folder}: holds no exported network ({error})") from error
    try:
        _check_format(said["format"], formats, folder / DESCRIPTION)
        digest = hashlib.sha256(content).hexdigest()
        if said["files"][WEIGHTS] != digest:
            raise ExportError(f"{folder / WEIGHTS}: is not the file that {DESCRIPTION} describes (SHA-256 {digest})")
        return build(said, load(content), folder)
    except ExportError:
        raise
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, SafetensorError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ExportError(f"{folder}: is no exported network ({what[:300]})") from error


def _check_format(said: Any, formats: Sequence[int], path: Path) -> None:
    known = (FORMAT, FORMAT_WITH_LABELS, FORMAT_OF_TRANSLATORS)
    if type(said) is not int or said not in known:
        raise ExportError(f"{path}: has format {said!r}, this version reads {', '.join(map(str, known))}")
    if said not in formats:
        what = "translator" if said == FORMAT_OF_TRANSLATORS else "generator"
        raise ExportError(f"{path}: describes a {what}; load it with load_{what}")


def _labels_of(said: dict[str, Any], path: Path) -> tuple[list[str], dict[str, int]]:
    """Return classes and rows of a description; nothing of a network without labels."""
    labels = said.get("labels", {"classes": [], "rows": {}})
    classes, rows = labels["classes"], labels["rows"]
    are_names = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    counted = isinstance(rows, dict) and all(type(n) is int and n > 0 for n in rows.values())
    known = are_names and counted and set(rows) == set(rows_of(rows, classes)) and len(set(classes)) == len(classes)
    if not known or sum(rows.values()) > 2**53 or bool(classes) != (said["format"] == FORMAT_WITH_LABELS):
        raise ExportError(f"{path}: does not say which labels there are")
    return classes, rows


def _read_description(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _LARGEST_DESCRIPTION:
        raise ExportError(f"{path}: has more than {_LARGEST_DESCRIPTION} bytes")
    try:
        said = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path}: is no JSON ({error})") from error
    if not isinstance(said, dict):
        raise ExportError(f"{path}: holds no object")
    return said


Network = TypeVar("Network", bound=nn.Module)


def _network(
    said: dict[str, Any], weights: dict[str, Tensor], path: Path, known: Mapping[str, type[Network]]
) -> Network:
    """Build the network that is described. First without memory, to see whether the weights are its own."""
    cls, arguments = _class_of(said, path.parent, known), said["arguments"]
    _check_images(arguments, path.parent)
    with torch.device("meta"):
        wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in cls(**arguments).state_dict().items()}
    if wanted != {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}:
        raise ExportError(f"{path}: holds other weights than the network has that {DESCRIPTION} describes")
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise ExportError(f"{path}: holds weights that are not finite")
    network = _built(said, path.parent, known)
    network.load_state_dict(weights)
    return network


def _check_images(arguments: dict[str, Any], folder: Path) -> None:
    """Raise ExportError unless a network makes images, of images, that runs can have."""
    if not all(1 <= int(side) <= _LARGEST_SIDE for side in arguments["image_size"]):
        raise ExportError(f"{folder}: image_size={arguments['image_size']}: sides are 1 to {_LARGEST_SIDE} pixels")
    for name in ("image_channels", "source_channels"):
        if name in arguments and not 1 <= int(arguments[name]) <= 4:
            raise ExportError(f"{folder}: {name}={arguments[name]}: images have 1 to 4 channels")


def _built(said: dict[str, Any], where: Path | str, known: Mapping[str, type[Network]]) -> Network:
    """Build the network that is described, at its stage."""
    cls = _class_of(said, where, known)
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and replaced
        network = cls(**said["arguments"])
    if isinstance(network, Grows):
        try:
            network.set_stage(int(said["stage"]), float(said["alpha"]))
        except ValueError as error:
            raise ExportError(f"{where}: {error}") from error
    return network


def _class_of(said: dict[str, Any], where: Path | str, known: Mapping[str, type[Network]]) -> type[Network]:
    cls = known.get(said["class"])
    if cls is None:
        raise ExportError(
            f"{where}: network {said['class']!r} is none of {', '.join(known) or 'those that are shipped'}"
        )
    return cls
