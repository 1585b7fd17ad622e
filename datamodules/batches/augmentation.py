"""Augmentation of training images: small rigid movements that keep anatomy plausible. MONAI moves the pixels.

Nothing else belongs here: a generator learns to draw whatever its training images show, so a quarter turn, an inversion
or another brightness would be learned as anatomy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

Preset = Literal["off", "mammogram", "chest_xray", "kidney_ct"]


class Limits(NamedTuple):
    """How far images may be moved; every value is 0 where nothing is changed.

    Attributes:
        flip_lr: Probability of a left-right flip.
        max_rotation_degrees: Largest rotation to either side.
        max_shift: Largest shift as a share of height and width.
        max_zoom: Largest change of size, as a share, to either side; the same for height and width.
    """

    flip_lr: float
    max_rotation_degrees: float
    max_shift: float
    max_zoom: float


PRESETS: dict[str, Limits] = {
    "off": Limits(flip_lr=0.0, max_rotation_degrees=0.0, max_shift=0.0, max_zoom=0.0),
    # Flip: a left breast is the mirror image of a right one; the side in the label changes with it. Rotation: people
    # are positioned that differently; more would tilt the pectoral muscle of an MLO view. Shift: the chest wall lies at
    # the edge of the film, and a larger shift would show a gap there. Zoom: breasts differ in size by far more.
    "mammogram": Limits(flip_lr=0.5, max_rotation_degrees=5.0, max_shift=0.02, max_zoom=0.05),
    # No flip: it makes a dextrocardia (Segal et al. 2021 flip and turn by 10 degrees to train their classifier, not the
    # GAN). Rotation, shift, zoom: how a patient stands before the detector, and how far away.
    "chest_xray": Limits(flip_lr=0.0, max_rotation_degrees=5.0, max_shift=0.03, max_zoom=0.05),
    # No flip: it puts the liver on the left. Rotation, shift, zoom: how a patient lies on the table, the reconstructed
    # field of view.
    "kidney_ct": Limits(flip_lr=0.0, max_rotation_degrees=5.0, max_shift=0.03, max_zoom=0.05),
}


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images that keep anatomy plausible; all off by default.

    Args:
        preset: Kind of image that the other values are meant for; each may be changed on its own.
        flip_lr: Probability of a left-right flip; None = the preset's. Only where left and right may be exchanged: it
            puts the liver on the wrong side and makes a dextrocardia of a chest film.
        max_rotation_degrees: Largest rotation to either side; None = the preset's.
        max_shift: Largest shift as a share of height and width; None = the preset's.
        max_zoom: Largest change of size as a share, to either side; None = the preset's.
    """

    preset: Preset = "off"
    flip_lr: float | None = None
    max_rotation_degrees: float | None = None
    max_shift: float | None = None
    max_zoom: float | None = None

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if self.preset not in PRESETS:
            raise ValueError(f"preset={self.preset!r}: must be one of {', '.join(get_args(Preset))}")
        if self.flip_lr is not None and not 0 <= self.flip_lr <= 1:
            raise ValueError(f"flip_lr={self.flip_lr}: a probability lies in 0..1")
        if self.max_rotation_degrees is not None and not 0 <= self.max_rotation_degrees <= 45:
            raise ValueError(f"max_rotation_degrees={self.max_rotation_degrees}: must lie in 0..45")
        if self.max_shift is not None and not 0 <= self.max_shift <= 0.5:
            raise ValueError(f"max_shift={self.max_shift}: must lie in 0..0.5")
        if self.max_zoom is not None and not 0 <= self.max_zoom <= 0.5:
            raise ValueError(f"max_zoom={self.max_zoom}: must lie in 0..0.5")

    @property
    def limits(self) -> Limits:
        """What applies: the preset's values, and those given instead."""
        given = {name: getattr(self, name) for name in Limits._fields}
        return PRESETS[self.preset]._replace(**{name: value for name, value in given.items() if value is not None})

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        return max(self.limits) > 0


def augment(images: Tensor, augmentation: Augmentation, seeds: Sequence[int]) -> tuple[Tensor, np.ndarray]:
    """Flip, turn, shift and zoom each image of a batch on its own; what comes into view is background (-1).

    What happens to an image depends on its seed alone: not on the other images of the batch, nor on the process.

    Args:
        images: Batch (N, C, H, W) float32 in [-1, 1], on any device.
        augmentation: What to change, and how much.
        seeds: One seed per image (N,), not negative.

    Returns:
        The images (N, C, H, W), and which of them were mirrored (N,) bool: their sides, left and right, are exchanged.

    Raises:
        ValueError: If there is not one seed per image.
    """
    if images.ndim != 4 or len(seeds) != len(images):
        raise ValueError(f"got {len(seeds)} seeds for images of shape {tuple(images.shape)}: one per image is needed")
    mirrored = np.zeros(len(images), dtype=bool)
    if not augmentation.active or not len(images):
        return images, mirrored
    results = []
    for i, (image, seed) in enumerate(zip(images, seeds, strict=True)):
        moved, mirrored[i] = _move(image, augmentation.limits, int(seed))
        results.append(moved)
    return torch.stack(results), mirrored


def _move(image: Tensor, limits: Limits, seed: int) -> tuple[Tensor, bool]:
    """Move one image (C, H, W).

    The draws are made here rather than by MONAI's RandAffine, which zooms height and width apart and so changes shapes.
    All are made whatever the limits are, so that switching one change off leaves the others as they were.
    """
    from monai.transforms import Affine, Flip  # takes seconds to import: only where it is used

    chance, turn, down, right, zoom = np.random.default_rng(seed).random(5).tolist()
    mirror = chance < limits.flip_lr
    if mirror:
        image = _plain(Flip(spatial_axis=1)(image))
    if max(limits[1:]) > 0:
        _, height, width = image.shape
        # MONAI maps the pixels of the result to those of the image: the inverse of what is meant, but for symmetric
        # draws only the size matters. It shifts before it scales: the product keeps a shift within its limit.
        scale = 1.0 / (1.0 + (2.0 * zoom - 1.0) * limits.max_zoom)
        affine = Affine(
            rotate_params=np.deg2rad((2.0 * turn - 1.0) * limits.max_rotation_degrees).item(),
            translate_params=(
                (2.0 * down - 1.0) * limits.max_shift * height * scale,
                (2.0 * right - 1.0) * limits.max_shift * width * scale,
            ),
            scale_params=(scale, scale),
            mode="bilinear",
            padding_mode="zeros",
            image_only=True,
            device=image.device,
        )
        image = (_plain(affine(image + 1.0)) - 1.0).clamp_(-1.0, 1.0)  # 0 is background while it is moved
    return image, mirror


def _plain(result: Any) -> Tensor:
    """Return MONAI's result without the record of transforms that it carries."""
    return result.as_tensor() if hasattr(result, "as_tensor") else result
