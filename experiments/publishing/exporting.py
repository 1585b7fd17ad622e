"""Exporting: what is handed on of a run, in files that need neither the run nor Lightning."""

import hashlib
import importlib.util
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import torch
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

import lightning_modules
from callbacks.sample_grid import enlarged, grid_picture
from datamodules.writing.writers import NOTICE, NOTICE_OF_TRANSLATION
from experiments.configuration.errors import ConfigError
from experiments.evaluation.privacy import why_not_private
from experiments.publishing import medigan, monai_bundle
from experiments.publishing.how_to_load import loading_of, loading_of_translator
from experiments.publishing.model_card import model_card
from experiments.record.loading import Trained, generate, load_trained, unfinished
from experiments.record.run_directory import refuse_links, versions, write_bytes
from lightning_modules.networks.exported import (
    DESCRIPTION,
    FORMAT,
    FORMAT_OF_TRANSLATORS,
    FORMAT_WITH_LABELS,
    WEIGHTS,
    ExportedGenerator,
    ExportedTranslator,
    ExportError,
    arguments_of,
    describe,
    describe_translator,
    weights_of,
)
from lightning_modules.networks.latents import rows_of
from lightning_modules.protocols import Averages, Samples, Translates, can

log = logging.getLogger(__name__)
Exported = ExportedGenerator | ExportedTranslator

ONNX, CARD, SAMPLES = "generator.onnx", "README.md", "samples.png"
OPSET = 18
NO_LICENCE = "not recorded: whoever publishes the weights decides, within the terms of the training data"
_SAMPLE_PIXELS, _MOST_SAMPLES = 2**20, 64


@dataclass(frozen=True)
class _Form:
    """A form of export.

    Attributes:
        folder: Default name of its folder in the run directory.
        marks: Files that tell it from others; the first is written last: until it is there, the folder is no export.
        files: Makes the contents of all files, by their paths in the folder.
    """

    folder: str
    marks: tuple[str, str]
    files: Callable[["_Parts"], dict[str, bytes]]


@dataclass(frozen=True)
class _Parts:
    """What every form is made of.

    Attributes:
        trained: The run.
        exported: Its generator or translator.
        description: What ``generator.json`` says, but for the files.
        samples: ``samples.png``; None of a translator, whose images are made of patients'.
        sample_count: Images in it.
        onnx: The generator as ONNX; None = left out.
        package: Name of the folder.
    """

    trained: Trained[Averages]
    exported: Exported
    description: dict[str, Any]
    samples: bytes | None
    sample_count: int
    onnx: bytes | None
    package: str

    def card(self, description: dict[str, Any], loading: str) -> bytes:
        """Return the model card."""
        return model_card(self.trained, description, self.sample_count, loading).encode()


def export(
    path: Path,
    output: Path | None = None,
    with_onnx: bool = True,
    form: str = "safetensors",
    require_privacy: bool = False,
) -> Path:
    """Export the averaged generator or translator of a run, with its description and a model card.

    Args:
        path: A run directory or a checkpoint.
        output: The folder; None = ``RUN/export``, of other forms ``RUN/export_monai_bundle`` ... An earlier export of
            the same form there is replaced.
        with_onnx: Also write ``generator.onnx``, in a MONAI bundle ``models/model.onnx``; medigan has none.
        form: "safetensors", "monai-bundle" or "medigan"; of a translator the first.
        require_privacy: Refuse unless a privacy evaluation of these weights is clean; see ``why_not_private``.

    Returns:
        The folder.

    Raises:
        ConfigError: If there is no such generator, it cannot be exported, the packages for ONNX are missing, or privacy
            is required and was not found.
        OSError: If a file cannot be written.
    """
    with_onnx = with_onnx and form != "medigan"
    if with_onnx and (missing := [name for name in ("onnx", "onnxscript") if not importlib.util.find_spec(name)]):
        raise ConfigError(
            [f"ONNX needs {' and '.join(missing)}: install mirage-gan[export], or leave it out with --no-onnx"]
        )
    trained = load_trained(path, "cpu", Averages)
    chosen = _FORMS[form]
    if can(trained.module, Translates):
        _check_options_of_translator(form, require_privacy)
    if require_privacy and (problems := why_not_private(path, trained.directory, trained.weights_sha256)):
        raise ConfigError(problems)
    folder = (output or trained.directory / chosen.folder).absolute()
    _check_folder(folder, trained, chosen)
    if note := unfinished(trained.module):
        log.warning("%s: %s", trained.checkpoint.name, note)
    try:
        exported, description = _described(trained)
        if not all(tensor.isfinite().all() for tensor in exported.network.state_dict().values()):
            raise ValueError(f"{trained.checkpoint}: its generator has weights that are not finite")
        images = samples(trained) if isinstance(exported, ExportedGenerator) else None
        onnx = onnx_of(exported, description["notice"]) if with_onnx else None
    except (ExportError, ValueError) as error:
        raise ConfigError([str(error)]) from error
    picture = None if images is None else _png(images)
    files = chosen.files(
        _Parts(trained, exported, description, picture, 0 if images is None else len(images), onnx, folder.name)
    )

    last = chosen.marks[0]
    for name in (last, *(name for name in (ONNX, monai_bundle.ONNX, SAMPLES) if name not in files)):
        (folder / name).unlink(missing_ok=True)
    for name in (*(name for name in files if name != last), last):
        write_bytes(folder / name, files[name])
    return folder


def _check_options_of_translator(form: str, require_privacy: bool) -> None:
    """Refuse what cannot be said or handed on of a translator."""
    problems = []
    if form != "safetensors":
        problems += [f"--format {form}: holds generators from latents, and this is a translator; leave it out"]
    if require_privacy:
        problems += [
            "--require-privacy: its tests ask whether images show training patients, and a translation shows the "
            "patient of its source; leave it out, and handle weights and translations as patients' data"
        ]
    if problems:
        raise ConfigError(problems)


def _as_safetensors(parts: _Parts) -> dict[str, bytes]:
    """Return weights and description for ``load_generator`` or ``load_translator``, and ONNX."""
    files = {WEIGHTS: weights_of(parts.exported)}
    if parts.onnx is not None:
        files[ONNX] = parts.onnx
    if parts.samples is not None:
        files[SAMPLES] = parts.samples
    description = {**parts.description, "files": _hashes(files)}
    translates = isinstance(parts.exported, ExportedTranslator)
    files[CARD] = parts.card(description, (loading_of_translator if translates else loading_of)(description))
    return {**files, DESCRIPTION: _json(description)}


def _as_monai_bundle(parts: _Parts) -> dict[str, bytes]:
    """Return a MONAI bundle."""
    assert isinstance(parts.exported, ExportedGenerator) and parts.samples is not None
    files = {monai_bundle.WEIGHTS: monai_bundle.weights_of(parts.exported)}
    if parts.onnx is not None:
        files[monai_bundle.ONNX] = parts.onnx
    description = {**parts.description, "files": _hashes(files)}
    task = f"Generate synthetic images like those of {description['data_set'] or 'its data set'}"
    files |= {
        monai_bundle.INFERENCE: _json(monai_bundle.inference(description)),
        monai_bundle.METADATA: _json(monai_bundle.metadata(description, task)),
        f"docs/{SAMPLES}": parts.samples,
        f"docs/{CARD}": parts.card(description, _with_shape(monai_bundle.LOADING, description)),
        "LICENSE": _licence(),
    }
    return files | _code_of_networks()


def _as_medigan(parts: _Parts) -> dict[str, bytes]:
    """Return a model package of medigan."""
    assert parts.samples is not None
    files = {WEIGHTS: weights_of(parts.exported)}
    description = {**parts.description, "files": _hashes(files)}
    loading = medigan.LOADING.replace("MODEL", medigan.model_id(description)).replace("FOLDER", parts.package)
    files |= {
        DESCRIPTION: _json(description),
        medigan.ENTRY: medigan.entry(),
        medigan.METADATA: _json(medigan.metadata(description, parts.package)),
        SAMPLES: parts.samples,
        CARD: parts.card(description, _with_shape(loading, description)),
        "LICENSE": _licence(),
    }
    return files | _code_of_networks()


_FORMS = {
    "safetensors": _Form("export", (DESCRIPTION, WEIGHTS), _as_safetensors),
    "monai-bundle": _Form("export_monai_bundle", (monai_bundle.METADATA, monai_bundle.WEIGHTS), _as_monai_bundle),
    "medigan": _Form("export_medigan", (medigan.METADATA, medigan.ENTRY), _as_medigan),
}


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _hashes(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def _with_shape(loading: str, description: dict[str, Any]) -> str:
    image = description["image"]
    return loading.replace("SHAPE", f"(16, {image['channels']}, {image['height']}, {image['width']})")


def _code_of_networks() -> dict[str, bytes]:
    """Return the modules that networks are made of; they need torch and each other only."""
    root = Path(lightning_modules.__file__).parent
    paths = [root / "__init__.py", *sorted((root / "networks").glob("*.py"))]
    return {path.relative_to(root.parent).as_posix(): path.read_bytes() for path in paths}


def _licence() -> bytes:
    """Return the licence of the code, which whoever hands it on has to add; in a checkout, or as it was installed."""
    here = Path(__file__).parent.parent.parent / "LICENSE"
    text = here.read_text() if here.is_file() else distribution("mirage-gan").read_text("licenses/LICENSE")
    assert text is not None
    return text.encode()


def _described(trained: Trained[Averages]) -> tuple[Exported, dict[str, Any]]:
    """Return what is exported, and what is said of it."""
    module = trained.module
    if can(module, Translates):
        translator = ExportedTranslator(module.generator_ema)
        described, facts = describe_translator(translator), module.data_facts
        described["source"]["intensity"] = (facts.get("source") or {}).get("intensity")
        described["paired"] = facts.get("paired")
        return translator, _description(trained, FORMAT_OF_TRANSLATORS, NOTICE_OF_TRANSLATION, described)
    assert can(module, Samples)
    rows = rows_of(module.data_facts["label_rows"], module.classes) if module.classes else None
    generator = ExportedGenerator(module.generator_ema, module.prior, module.classes, rows)
    number = FORMAT_WITH_LABELS if module.classes else FORMAT
    return generator, _description(trained, number, NOTICE, describe(generator))


def samples(trained: Trained[Any]) -> Tensor:
    """Return the first images (n, C, H, W) of seed 0, fewer of large ones.

    Raises:
        ValueError: If they are not finite.
    """
    height, width = trained.module.schedule.at(trained.module.images_seen).resolution
    count = max(4, min(_MOST_SAMPLES, _SAMPLE_PIXELS // (height * width)))
    images = torch.cat([images for _, images in generate(trained.module, 0, count, seed=0)])
    if not images.isfinite().all():
        raise ValueError(f"{trained.checkpoint}: its generator makes values that are not finite")
    return images


def onnx_of(exported: Exported, notice: str) -> bytes:
    """Return a network as an ONNX file, which makes images (N, C, H, W) in [-1, 1].

    A generator's takes latents (N, latent_dim), and labels (N, K) if it is told any; a translator's takes sources
    (N, source_channels, H, W) in [-1, 1] of the size that it was trained at.

    Args:
        exported: The network with what is needed to use it.
        notice: What the file says of its images.

    Raises:
        ExportError: If the network draws random numbers inside, which a file cannot.
    """
    from onnx import ModelProto, helper

    if exported.network.noisy:
        raise ExportError("this network draws random numbers inside, which ONNX cannot: leave it out with --no-onnx")
    inputs = _example_inputs(exported)
    images = torch.export.Dim("N")
    with _quietly():
        program = torch.onnx.export(
            exported,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=["images"],
            dynamic_shapes={name: {0: images} for name in inputs},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = ModelProto.FromString(program.model_proto.SerializeToString())
    _forget_origin(model)
    helper.set_model_props(model, {"synthetic": "yes", "comment": notice})
    return model.SerializeToString(deterministic=True)


def _example_inputs(exported: Exported) -> dict[str, Tensor]:
    """Return two of each input: a batch of one would be taken for a constant."""
    if isinstance(exported, ExportedTranslator):
        return {"sources": torch.zeros(2, exported.source_channels, *arguments_of(exported.network)["image_size"])}
    labels = {"labels": torch.zeros(2, len(exported.classes))} if exported.classes else {}
    return {"latents": torch.zeros(2, exported.latent_dim), **labels}


def _forget_origin(node: Any) -> None:
    """Remove what the exporter noted of each node: lines of source with the paths of this machine."""
    for field, value in node.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            node.ClearField(field.name)
        elif field.message_type is not None and field.name != "raw_data":
            for child in (value,) if hasattr(value, "ListFields") else value:
                _forget_origin(child)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter's remarks on its own parts from the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check_folder(folder: Path, trained: Trained[Any], form: _Form) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError([f"{folder}: is no folder"])
    if form is _FORMS["medigan"] and "." in folder.name:
        raise ConfigError(
            [f"{folder}: medigan imports the folder by its name, which takes no dots; name another --output"]
        )
    refuse_links(trained.directory if folder.is_relative_to(trained.directory) else folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    # One of the marks outlives a kill. A package of medigan has those of safetensors, too, and is told by its own.
    found = [name for name, other in _FORMS.items() if any((folder / mark).is_file() for mark in other.marks)]
    if not found or _FORMS[found[-1]] is not form:
        what = "an export of another format" if found else "no export"
        raise ConfigError([f"{folder}: is not empty and holds {what}; name another --output"])


def _description(trained: Trained[Any], number: int, notice: str, described: dict[str, Any]) -> dict[str, Any]:
    recorded = versions()
    return {
        "format": number,
        "synthetic": True,
        "notice": notice,
        "name": trained.config["name"],
        "run": trained.directory.name,
        "family": type(trained.module).__name__,
        "images_seen": trained.module.images_seen,
        **described,
        "intensity": asdict(trained.intensity),
        "data_set": trained.module.data_facts.get("data_set"),
        "weights_sha256": trained.weights_sha256,
        "versions": {name: recorded[name] for name in ("mirage-gan", "git_commit", "python", "torch")},
        "licence": NO_LICENCE,
    }


def _png(images: Tensor) -> bytes:
    info = PngInfo()
    for key, value in {"Synthetic": "yes", "Software": "Mirage", "Comment": NOTICE}.items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    grid_picture(enlarged(images), math.ceil(math.sqrt(len(images)))).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()
