"""Transforms of pixels: resizing at cache build, augmentation of batches on the device. Pure functions."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image (C, H, W) float32 to (C, height, width).

    Shrinking by whole numbers averages boxes of pixels, which is what the average pools of a growing GAN do to real
    images; any other size uses an antialiased triangle filter.
    """
    _, h, w = image.shape
    if (h, w) == (height, width):
        return image
    if h % height == 0 and w % width == 0:
        boxes = image.reshape(image.shape[0], height, h // height, width, w // width)
        return boxes.mean(axis=(2, 4), dtype=np.float32)
    batch = torch.from_numpy(np.ascontiguousarray(image)).unsqueeze(0)
    resized = F.interpolate(batch, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return resized.squeeze(0).numpy()


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images that keep anatomy plausible; all off by default.

    Args:
        flip_lr: Probability of a left-right flip. Only where left and right may be exchanged: it puts the liver on the
            wrong side and makes a dextrocardia of a chest film.
        max_rotation_degrees: Largest rotation to either side.
        max_shift: Largest shift as a share of height and width.
    """

    flip_lr: float = 0.0
    max_rotation_degrees: float = 0.0
    max_shift: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if not 0 <= self.flip_lr <= 1:
            raise ValueError(f"flip_lr={self.flip_lr}: a probability lies in 0..1")
        if not 0 <= self.max_rotation_degrees <= 45:
            raise ValueError(f"max_rotation_degrees={self.max_rotation_degrees}: must lie in 0..45")
        if not 0 <= self.max_shift <= 0.5:
            raise ValueError(f"max_shift={self.max_shift}: must lie in 0..0.5")

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        return max(self.flip_lr, self.max_rotation_degrees, self.max_shift) > 0


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Flip, rotate and shift each image of a batch on its own; what comes into view is background (-1).

    Args:
        images: Batch (N, C, H, W) in [-1, 1].
        augmentation: What to change, and how much.
        generator: Source of randomness, on the device of the images.
    """
    n, _, height, width = images.shape
    flip, rotate, shift_y, shift_x = torch.rand(4, n, generator=generator, device=images.device)
    sign = 1.0 - 2.0 * (flip < augmentation.flip_lr).float()
    angle = (2.0 * rotate - 1.0) * math.radians(augmentation.max_rotation_degrees)
    cos, sin = angle.cos(), angle.sin()
    # Normalised coordinates run over [-1, 1]: a rotation must undo the aspect ratio, a shift counts double.
    theta = images.new_zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = sign * cos, -sin * height / width
    theta[:, 1, 0], theta[:, 1, 1] = sign * sin * width / height, cos
    theta[:, 0, 2] = (2.0 * shift_x - 1.0) * 2.0 * augmentation.max_shift
    theta[:, 1, 2] = (2.0 * shift_y - 1.0) * 2.0 * augmentation.max_shift
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1.0, grid, mode="bilinear", padding_mode="zeros", align_corners=False) - 1.0
