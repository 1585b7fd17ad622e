"""Files that were saved anew: other bytes, the same pixels."""

import hashlib
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from datamodules.records.duplicates import TELLING
from experiments.configuration.errors import ConfigError
from experiments.measuring.image_sets import FolderImages, ImageSet
from experiments.measuring.scoring import Sets
from experiments.measuring.vectors import VectorCache
from lightning_modules.metrics.features import FeatureExtractor

LEVELS = 65535  # images are rounded to so many: how a file's values were scaled leaves no trace


class PixelHash(FeatureExtractor):
    """A hash of an image's pixels, 8 numbers of 24 bits; zeros if equality says nothing (one value, few pixels)."""

    score_name = "pixel_hash"
    dimensions = 8

    def identity(self) -> dict[str, str]:
        """Return name and preprocessing."""
        return {"extractor": self.score_name, "preprocessing": f"rounded to {LEVELS} levels"}

    def features(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [-1, 1] to hashes (N, 8), whole numbers that float32 holds exactly."""
        levels = images.cpu().add(1.0).mul_(LEVELS / 2).round_().to(torch.int32).numpy()
        return torch.from_numpy(np.stack([_hash(image) for image in levels]))


def checked_pixels(sets: Sets, read: list[ImageSet], vectors: VectorCache) -> Sets:
    """Return sets with warnings of images that are in two of them, or twice among the real ones.

    Generated images that equal real ones stay: a generator that repeats what it was trained on is judged by it.

    Args:
        sets: What is compared with what.
        read: Those of them that instruments read; others are not decoded for this.
        vectors: Where their hashes are.

    Raises:
        ConfigError: If files that are held out are training images saved anew.
    """
    hashes = {id(images): _hashes(images, vectors) for images in read}
    real, generated, train, held_out = (
        hashes.get(id(images), []) for images in (sets.real, sets.generated, sets.train, sets.held_out)
    )
    if isinstance(sets.held_out, FolderImages) and sets.train is not None:
        _refuse_equal(sets.held_out, sets.train, held_out, train)
    said = list(sets.warnings)
    known = {*real, *train, *held_out}
    if copied := sum(content in known for content in generated if content):
        said.append(
            f"{copied} of {len(generated)} generated images have the same pixels as real ones: the generator repeats "
            "them, or they are real images that were saved anew; scores take them for very good ones"
        )
    telling = [content for content in real if content]
    if (twice := len(telling) - len(set(telling))) and isinstance(sets.real, FolderImages):
        said.append(
            f"{twice} of {len(real)} real images have the same pixels as another one (files that were saved anew): "
            "remove them, for what is there more often weighs more"
        )
    return replace(sets, warnings=tuple(said))


def _refuse_equal(held_out: FolderImages, train: ImageSet, ours: list[bytes], theirs: list[bytes]) -> None:
    name = dict(zip(theirs, train.names, strict=True)) if theirs else {}
    equal = [(held_out.names[i], name[content]) for i, content in enumerate(ours) if content and content in name]
    if equal:
        where = train.file_set.called if isinstance(train, FolderImages) else train.what
        raise ConfigError(
            [
                f"{held_out.file_set.called}: {len(equal)} of {len(held_out)} images have the same pixels as those of "
                f"{where}, saved anew, e.g. {equal[0][0]} as {equal[0][1]}; remove them from one of the two"
            ]
        )


def _hashes(images: ImageSet, vectors: VectorCache) -> list[bytes]:
    """Return a hash of each image, empty where equality says nothing."""
    return [row.tobytes() if row.any() else b"" for row in vectors.vectors(images, PixelHash()).numpy()]


def _hash(image: np.ndarray) -> np.ndarray:
    if image[0].size < TELLING or image.min() == image.max():
        return np.zeros(PixelHash.dimensions, np.float32)
    digest = np.frombuffer(hashlib.sha256(image.tobytes()).digest()[: 3 * PixelHash.dimensions], np.uint8)
    return (digest.reshape(-1, 3).astype(np.float32) @ np.array([65536, 256, 1], np.float32)).astype(np.float32)
