"""Frechet Radiomics Distance: of the histogram and texture features that radiomics studies use, not of a network.

Konz, Osuala et al., "Frechet Radiomic Distance (FRD): a versatile metric for comparing medical imaging datasets"
(Medical Image Analysis 2026, arXiv:2412.01496), whose code is the package frd-score. Its version 1 is log(d^2) of files
as they are; here both sets come through one range, the squared distance is given, so that equal sets get 0 and a floor
can stand beside it, and flat pictures, on which pyradiomics fails, are left out and counted.
"""

import hashlib
import importlib.util
import logging
import math
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.metadata import version
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics.features import ExtractorError, FeatureExtractor
from lightning_modules.metrics.frechet import frechet_distance_of
from lightning_modules.metrics.score import DistributionScore, TooFewImagesError

PACKAGES = ("frd_score", "radiomics", "SimpleITK")
NOISE = {f"wavelet-{band}_firstorder_{value}" for band in ("LH", "HL", "HH") for value in ("Mean", "Median")}
INSTALL = "install the extra mirage-gan[frd] as experiments/docs/frechet_radiomics.md says (pyradiomics is compiled)"
_CONSTANT = 1e-6  # deviation of a feature below which it is rounding of a constant, as a part of its size: float32
_NAMED = 10  # flat pictures whose places are said


class Radiomics(FeatureExtractor):
    """379 of the 385 radiomics features of FRD version 1 in two dimensions, of the whole image.

    18 histogram and 59 texture features (co-occurrence, run lengths, zones, grey-tone differences) of the image and of
    its four wavelet bands, after normalisation of each image and halving of its size, as frd-score's
    ``extraction_2d.yaml`` says. That file also asks for Laplacians of Gaussians, which pyradiomics skips in two
    dimensions. Images are rounded to 8 bits first, so that the depth of a file is no feature. Left out are:

    - what frd-score appends, pyradiomics' 13 diagnostics, among them mean and range of the file's raw values;
    - ``NOISE``, mean and median of the three detail bands: the mean is 0 but for rounding (1e-16), and where half of an
      image is background the median is the ringing of the interpolation (1e-12 to 0.5 of a deviation of 100). Divided
      by its deviation in one half of 250 kidney CT slices it put the other half 1e6 away.

    A flat picture has no such features: its vector is NaN throughout. Half a second an image of 64x64 or more: as many
    processes work as torch has threads.
    """

    score_name = "frechet_radiomics"
    dimensions = 379

    def __init__(self) -> None:
        super().__init__()
        self._pool: ProcessPoolExecutor | None = None

    def prepare(self) -> None:
        """Check that the packages are there.

        Raises:
            ExtractorError: If one is missing.
        """
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise ExtractorError(f"radiomics features need packages that are missing ({', '.join(missing)}): {INSTALL}")

    def load(self) -> None:
        """Start the processes where more than one may work."""
        threads = torch.get_num_threads()
        if threads > 1 and self._pool is None:
            self._pool = ProcessPoolExecutor(threads, mp_context=get_context("spawn"), initializer=_end_with_parent)

    def identity(self) -> dict[str, str]:
        """Return name, hash of the settings, and what is done to an image, with the versions that do it."""
        return {
            "extractor": "radiomics_frd_v1",
            "weights_sha256": hashlib.sha256(_settings_file().read_bytes()).hexdigest(),
            "preprocessing": f"8 bits, whole image, settings of frd-score {version('frd-score')} in two dimensions by "
            f"pyradiomics {version('pyradiomics')} without diagnostics, means and medians of detail bands",
        }

    def features(self, images: Tensor) -> Tensor:
        """Map images (N, 1, H, W) to features (N, 379); the row of a flat picture is NaN.

        Raises:
            ValueError: If the images have more than one channel, or pyradiomics fails on one that is not flat.
        """
        if images.shape[1] != 1:
            raise ValueError(f"radiomics features are of grey images, got {images.shape[1]} channels")
        levels = ((images[:, 0] + 1.0) * 127.5).round().clamp(0, 255).cpu().numpy()
        vectors = map(_vector, levels) if self._pool is None else self._pool.map(_vector, levels, chunksize=4)
        return torch.from_numpy(np.stack(list(vectors))).to(images.device)


class FrechetRadiomics(DistributionScore):
    """Frechet Radiomics Distance, squared: of features whose means and deviations are those of the real set.

    It is exp of what frd-score's version 1 gives for these features with the real set first. The sets cannot be
    swapped. Features that are constant in the real set are left out, as there. ``flat_share`` is the part of the
    generated images that are flat pictures, which the distance knows nothing of.
    """

    better = "lower"
    bounds = (0.0, math.inf)

    def __init__(self) -> None:
        self.reads = Radiomics()

    def enough(self, dimensions: int) -> int:
        """Return twice the length of a vector, as of every Frechet distance."""
        return 2 * dimensions

    def measure(self, real: Tensor, generated: Tensor) -> dict[str, float]:
        """Return ``frechet_radiomics`` and ``flat_share``."""
        usable = [vectors[~_flat(vectors)] for vectors in (real, generated)]
        for what, all_of, used in zip(("real", "generated"), (real, generated), usable, strict=True):
            if len(used) < self.at_least:
                raise TooFewImagesError(
                    f"FrechetRadiomics needs at least {self.at_least} images of each set that are not flat, got "
                    f"{len(used)} of {len(all_of)} {what} ones"
                )
        self.check(*usable)
        return {
            "frechet_radiomics": frechet_distance_of(*z_scored(*usable)),
            "flat_share": float(_flat(generated).double().mean()),
        }

    def warnings(self, real: Tensor, generated: Tensor) -> list[str]:
        """Say which images are flat, by their places in the sets."""
        found = []
        for what, vectors in (("real", real), ("generated", generated)):
            places = _flat(vectors).nonzero().flatten().tolist()
            if places:
                named = ", ".join(map(str, places[:_NAMED])) + (" ..." if len(places) > _NAMED else "")
                found.append(
                    f"{len(places)} of {len(vectors)} {what} images are flat pictures, which have no radiomics "
                    f"features, and are left out (counted from 0: {named})"
                )
        return found


def z_scored(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sets with the real set's means as 0 and its deviations as 1, without features it has constant.

    Args:
        real: Features (N, D).
        generated: Features (M, D).

    Returns:
        Features (N, K) and (M, K) float64.

    Raises:
        ValueError: If every feature is constant in the real set.
    """
    real, generated = real.double(), generated.double()
    mean, deviation = real.mean(dim=0), real.std(dim=0, correction=0)
    varying = deviation > _CONSTANT * real.abs().amax(dim=0)
    if not varying.any():
        raise ValueError("every radiomics feature is constant in the real images")
    mean, deviation = mean[varying], deviation[varying]
    return (real[:, varying] - mean) / deviation, (generated[:, varying] - mean) / deviation


def is_feature(name: str) -> bool:
    """Return whether a value of pyradiomics is one of the features."""
    return not name.startswith("diagnostics") and name not in NOISE


def _flat(vectors: Tensor) -> Tensor:
    """Return which vectors (N, D) are those of flat pictures (N,)."""
    return vectors.isnan().all(dim=1)


def _vector(levels: np.ndarray) -> np.ndarray:
    """Return the features (379,) float32 of an image (H, W) of grey levels."""
    import SimpleITK

    if levels.min() == levels.max():
        return np.full(Radiomics.dimensions, np.nan, np.float32)
    mask = np.ones((1, *levels.shape), np.uint8)
    mask[0, 0, 0] = 0  # as frd-score does: a mask that is full fails in some versions of pyradiomics
    image, mask = SimpleITK.GetImageFromArray(levels[None]), SimpleITK.GetImageFromArray(mask)
    try:
        found = _extractor().execute(image, mask)
    except ValueError as error:
        raise ValueError(f"pyradiomics fails on an image of {levels.shape[0]}x{levels.shape[1]}: {error}") from error
    values = [float(value) for name, value in found.items() if is_feature(name)]
    if len(values) != Radiomics.dimensions or not np.isfinite(values).all():
        raise ValueError(f"pyradiomics gives {len(values)} features, not {Radiomics.dimensions} that are finite")
    return np.array(values, np.float32)


@cache
def _extractor() -> Any:
    """Return this process's extractor."""
    from frd_score.frd import get_feature_extractor
    from radiomics import setVerbosity

    for name in ("radiomics", "pykwalify"):
        logging.getLogger(name).setLevel(logging.ERROR)
    setVerbosity(logging.CRITICAL)  # a line or two for each image otherwise
    return get_feature_extractor("v1", image_dim=2)


def _settings_file() -> Path:
    found = importlib.util.find_spec("frd_score")
    if found is None or found.origin is None:
        raise ExtractorError(f"radiomics features need packages that are missing (frd_score): {INSTALL}")
    return Path(found.origin).parent / "configs" / "extraction_2d.yaml"


def _end_with_parent() -> None:
    """End a process with the one that started it, however that ends."""
    torch.set_num_threads(1)
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()
