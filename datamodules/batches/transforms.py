"""Resizing and padding."""

from functools import lru_cache

import numpy as np
import torch
from scipy.sparse import csr_array
from torch.nn import functional as F


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image (C, H, W) float32 to (C, height, width).

    Shrinking averages areas: each new pixel is the mean of what it covers, parts of pixels included. By whole numbers
    that is what the average pools of a growing GAN do to real images. Enlarging interpolates linearly.
    """
    _, h, w = image.shape
    if (h, w) == (height, width):
        return image
    if h % height == 0 and w % width == 0:
        batch = torch.from_numpy(np.ascontiguousarray(image)).unsqueeze(0)
        return F.avg_pool2d(batch, (h // height, w // width)).squeeze(0).numpy()
    if height <= h and width <= w:
        rows, columns = _coverage(h, height), _coverage(w, width)
        return np.stack([columns.dot((rows.dot(channel)).T).T for channel in image])
    batch = torch.from_numpy(np.ascontiguousarray(image)).unsqueeze(0)
    resized = F.interpolate(batch, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return resized.squeeze(0).numpy()


def pad_equally(image: np.ndarray, height: int, width: int, value: float) -> np.ndarray:
    """Pad an image (C, H, W) on opposite sides alike, to the aspect ratio height : width."""
    _, h, w = image.shape
    below, beside = max(0, round(w * height / width) - h), max(0, round(h * width / height) - w)
    around = ((0, 0), (below // 2, below - below // 2), (beside // 2, beside - beside // 2))
    return np.pad(image, around, constant_values=value)


@lru_cache(maxsize=64)  # data sets have few sizes; a matrix holds about two numbers per old pixel
def _coverage(before: int, after: int) -> csr_array:
    """Return the shares (after, before) of the old pixels of a row in each new one."""
    edges = np.arange(after + 1) * (before / after)
    old = np.arange(before)
    first = np.floor(edges[:-1]).astype(int)
    span = int(np.ceil(before / after)) + 1
    columns = np.minimum(first[:, None] + np.arange(span), before - 1)
    covered = np.minimum(old[columns] + 1, edges[1:, None]) - np.maximum(old[columns], edges[:-1, None])
    covered[first[:, None] + np.arange(span) > before - 1] = 0.0
    shares = (np.clip(covered, 0.0, 1.0) * (after / before)).astype(np.float32)
    rows = np.repeat(np.arange(after), span)
    return csr_array((shares.ravel(), (rows, columns.ravel())), shape=(after, before))
