"""Vectors of images, computed once: kept in shards, so that a killed evaluation goes on and a second one finds them."""

import hashlib
import itertools
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from callbacks.files import write_atomically
from experiments.measuring.image_sets import ImageSet
from experiments.record.loading import same_bits_each_time
from lightning_modules.metrics.features import FeatureExtractor

log = logging.getLogger(__name__)

SHARD, BATCH = 500, 50  # images in a file, and shown to an extractor at once
NAMED = 10  # images that are named on the terminal
VERSION = 1  # part of the key: raise it when an extractor gives other vectors than before


class VectorCache:
    """Computes vectors of sets of images, and keeps them.

    Args:
        folder: Where they are kept. Vectors of patients' images are patients' data: it lies in the image cache.
        device: Where extractors run.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self.folder, self.device = folder, torch.device(device)

    def vectors(self, images: ImageSet, extractor: FeatureExtractor, at_most: int | None = None) -> Tensor:
        """Return the vectors (N, D) float32 of the first ``at_most`` images of a set, or of all."""
        count = len(images) if at_most is None else min(at_most, len(images))
        self.compute(images, [(extractor, count)])
        found = []
        for start, stop in _shards(len(images)):
            if start < count:
                vectors = _load(self._path(images, extractor, start, stop), stop - start)
                if vectors is None:  # damaged
                    self._compute(images, [extractor], start, stop)
                    vectors = _load(self._path(images, extractor, start, stop), stop - start)
                assert vectors is not None
                found.append(vectors)
        return torch.cat(found)[:count]

    def compute(self, images: ImageSet, wanted: Sequence[tuple[FeatureExtractor, int]], title: str = "") -> None:
        """Compute what is missing; each image is read at most once.

        Args:
            images: The set.
            wanted: Loaded extractors, and of how many images (the first ones) each is wanted.
            title: What the progress bar says; without it there is none.
        """
        last = max(count for _, count in wanted)
        with tqdm(total=last, desc=title, unit="img", disable=None if title else True, leave=False) as bar:
            for start, stop in _shards(len(images)):
                due = [extractor for extractor, count in wanted if start < count]
                missing = [one for one in due if not self._path(images, one, start, stop).is_file()]
                if missing:
                    self._compute(images, missing, start, stop)
                bar.update(min(stop, last) - min(start, last))

    @torch.no_grad()
    def _compute(self, images: ImageSet, extractors: Sequence[FeatureExtractor], start: int, stop: int) -> None:
        batches = list(images.read(start, stop).split(BATCH))
        if len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        for extractor in extractors:
            vectors = torch.cat(self._of_batches(extractor, batches))
            if nothing := vectors.isnan().all(dim=1).nonzero().flatten().tolist():
                names, more = ", ".join(images.names[start + i] for i in nothing[:NAMED]), len(nothing) > NAMED
                what = f"{images.what}: {type(extractor).__name__} finds nothing in"
                log.warning("%s %d images (flat pictures?): %s%s", what, len(nothing), names, " ..." if more else "")
            path = self._path(images, extractor, start, stop)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(path, partial(np.save, arr=vectors.numpy(), allow_pickle=False))

    def _of_batches(self, extractor: FeatureExtractor, batches: Sequence[Tensor]) -> list[Tensor]:
        if self.device.type != "cpu":
            with same_bits_each_time(self.device):
                return [extractor(batch.to(self.device)).float().cpu() for batch in batches]
        # One thread for each of several batches: small networks gain little from more threads for one.
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            found = list(pool.map(lambda batch: extractor(batch).float(), batches))
        torch.set_num_threads(threads)  # the number is the process's in part
        return found

    def _path(self, images: ImageSet, extractor: FeatureExtractor, start: int, stop: int) -> Path:
        key = key_of(VERSION, BATCH, images.identity(), extractor.identity(), self.device.type)
        return self.folder / key / f"{start:08d}-{stop:08d}.npy"


def key_of(*what: Any) -> str:
    """Return a short hash of plain values."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:20]


def _load(path: Path, count: int) -> Tensor | None:
    """Return what was computed before, or None if it is damaged."""
    try:
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    is_array = isinstance(vectors, np.ndarray) and vectors.ndim == 2 and vectors.dtype == np.float32
    return torch.from_numpy(vectors) if is_array and len(vectors) == count else None


def _shards(count: int) -> list[tuple[int, int]]:
    """Return first and last image of each shard; none holds a single image, for some vectors compare neighbours."""
    edges = [*range(0, count, SHARD), count]
    if len(edges) > 2 and edges[-1] - edges[-2] == 1:
        del edges[-2]
    return list(itertools.pairwise(edges))
