"""Exporting: what is handed on of a run, in files that need neither the run nor Lightning."""

import hashlib
import importlib.util
import io
import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from callbacks.sample_grid import enlarged, grid_picture
from datamodules.writers import NOTICE
from experiments.config import ConfigError
from experiments.evaluation.privacy import why_not_private
from experiments.loading import Trained, generate, load_run
from experiments.model_card import model_card
from experiments.run_directory import refuse_links, versions, write_bytes, write_text
from lightning_modules.networks.exported import (
    DESCRIPTION,
    FORMAT,
    WEIGHTS,
    ExportedGenerator,
    ExportError,
    describe,
    weights_of,
)

ONNX, CARD, SAMPLES = "generator.onnx", "README.md", "samples.png"
OPSET = 18
NO_LICENCE = "not recorded: whoever publishes the weights decides, within the terms of the training data"
_SAMPLE_PIXELS, _MOST_SAMPLES = 2**20, 64


def export(path: Path, output: Path | None = None, with_onnx: bool = True, require_privacy: bool = False) -> Path:
    """Export the averaged generator of a run, with its description and a model card.

    Args:
        path: A run directory or a checkpoint.
        output: The folder; None = ``RUN/export``. An earlier export there is replaced.
        with_onnx: Also write ``generator.onnx``.
        require_privacy: Refuse unless a privacy evaluation of these weights is clean; see ``why_not_private``.

    Returns:
        The folder.

    Raises:
        ConfigError: If there is no such generator, it cannot be exported, the packages for ONNX are missing, or privacy
            is required and was not found.
        OSError: If a file cannot be written.
    """
    if with_onnx and (missing := [name for name in ("onnx", "onnxscript") if not importlib.util.find_spec(name)]):
        raise ConfigError(
            [f"ONNX needs {' and '.join(missing)}: install mirage-gan[export], or leave it out with --no-onnx"]
        )
    trained = load_run(path)
    if require_privacy and (problems := why_not_private(path, trained.directory, trained.weights_sha256)):
        raise ConfigError(problems)
    folder = (output or trained.directory / "export").absolute()
    _check_folder(folder, trained)
    module = trained.module
    generator = ExportedGenerator(module.generator_ema, module.prior, module.normalises_latents)
    try:
        description = _description(trained, generator)
        images = samples(trained)
    except (ExportError, ValueError) as error:
        raise ConfigError([str(error)]) from error
    files = {WEIGHTS: weights_of(generator)}
    if with_onnx:
        files[ONNX] = onnx_of(generator)
    files[SAMPLES] = _png(images)
    description["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[CARD] = model_card(trained, description, len(images)).encode()

    # The description comes last: until it is there, the folder is no export.
    for name in (DESCRIPTION, *((ONNX,) if not with_onnx else ())):
        (folder / name).unlink(missing_ok=True)
    for name, content in files.items():
        write_bytes(folder / name, content)
    write_text(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    return folder


def samples(trained: Trained) -> Tensor:
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


def onnx_of(generator: ExportedGenerator) -> bytes:
    """Return the generator as an ONNX file: latents (N, latent_dim) to images (N, C, H, W) in [-1, 1]."""
    from onnx import ModelProto, helper

    latents = torch.zeros(2, generator.latent_dim)  # two: a batch of one would be taken for a constant
    with _quietly():
        program = torch.onnx.export(
            generator,
            (latents,),
            input_names=["latents"],
            output_names=["images"],
            dynamic_shapes={"latents": {0: torch.export.Dim("N")}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = ModelProto.FromString(program.model_proto.SerializeToString())
    _forget_origin(model)
    helper.set_model_props(model, {"synthetic": "yes", "comment": NOTICE})
    return model.SerializeToString(deterministic=True)


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


def _check_folder(folder: Path, trained: Trained) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError([f"{folder}: is no folder"])
    refuse_links(trained.directory if folder.is_relative_to(trained.directory) else folder)
    is_export = any((folder / name).is_file() for name in (DESCRIPTION, WEIGHTS))  # one of them outlives a kill
    if folder.is_dir() and any(folder.iterdir()) and not is_export:
        raise ConfigError([f"{folder}: is not empty and holds no export; name another --output"])


def _description(trained: Trained, generator: ExportedGenerator) -> dict[str, Any]:
    recorded = versions()
    return {
        "format": FORMAT,
        "synthetic": True,
        "notice": NOTICE,
        "name": trained.config["name"],
        "run": trained.directory.name,
        "family": type(trained.module).__name__,
        "images_seen": trained.module.images_seen,
        **describe(generator),
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
