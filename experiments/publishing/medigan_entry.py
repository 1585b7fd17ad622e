"""What medigan calls: ``generate`` makes synthetic images. README.md of this folder says of what and how.

Written by Mirage's ``python -m experiments.export --format medigan``, which copies this file.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

_generators: dict[str, Any] = {}  # loaded once
_made: dict[tuple[str, int, float], int] = {}  # medigan asks for a number of images in several calls


def generate(
    model_file: str,
    num_samples: int,
    output_path: str = "",
    save_images: bool = False,
    seed: int = 0,
    truncation: float = 1.0,
) -> list[np.ndarray] | None:
    """Make the next images of a seed's list: calls of one process continue it, so that no image comes twice.

    Args:
        model_file: ``generator.safetensors``, beside its ``generator.json``.
        num_samples: Number of images.
        output_path: Folder of the PNG files, which are named after the place in the list.
        save_images: Write files instead of returning images.
        seed: Names the list of images.
        truncation: Factor on the latents: below 1 the images are less varied.

    Returns:
        Images (H, W, C) uint8; None if they were written.
    """
    if num_samples < 1:  # medigan asks for the rest after the last whole batch, which may be none
        return None if save_images else []
    generator = _loaded(str(Path(model_file).parent))
    start = _made.get((model_file, seed, truncation), 0)
    images = generator.sample(num_samples, truncation, seed, start).cpu().numpy()
    _made[model_file, seed, truncation] = start + num_samples
    pictures = [np.rint((image + 1.0) * 127.5).astype(np.uint8).transpose(1, 2, 0) for image in images]
    logging.debug("%s: made images %d to %d of seed %d", model_file, start, start + num_samples - 1, seed)
    if not save_images:
        return pictures
    info = PngInfo()
    info.add_text("Synthetic", "yes")
    info.add_text("Comment", generator.description["notice"])
    Path(output_path).mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures, start):
        path = Path(output_path) / f"{i:06d}.png"
        Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(path, pnginfo=info)
    return None


def _loaded(folder: str) -> Any:
    if folder not in _generators:
        if folder not in sys.path:
            sys.path.append(folder)  # Mirage's own modules of the networks lie here; an installed Mirage goes first
        from lightning_modules.networks.exported import load_generator

        _generators[folder] = load_generator(folder)
    return _generators[folder]
