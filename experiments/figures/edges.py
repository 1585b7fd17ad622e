"""Edges of real and generated images: section 3.3.1 and figure 3.10 of Sahakyan 2024.

"A simple algorithm for viewing the edges has been applied", says the text, and shows edges of generated images.

Open in the text, and chosen here:
    Detector: it is not named. Two are shown, each from a library: Pillow's FIND_EDGES, the simplest at hand, and the
        magnitude of SciPy's Sobel gradient, the detector of the edge-aware GAN that chapter 2 describes (figure 2.11).
    Real images: the paper shows edges of generated ones only. Whether they are too soft or too many can be seen beside
        real ones alone, on one scale.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STEEPEST = 20.0**0.5  # the largest Sobel magnitude of values in [0, 1]: 4 in one direction and 2 in the other
_BLACK = 99.5  # percentile of a detector's output that is drawn black; the few beyond would leave the others pale


def simple_edges(images: Tensor) -> Tensor:
    """Return by how much pixels are brighter than their eight neighbours: Pillow's ``FIND_EDGES``.

    A Laplacian on 8 bits: eight times the pixel less the sum of its neighbours, clipped at 0 and at 255. It marks the
    brighter side of an edge, lone bright pixels and noise. At the border the neighbours that are missing are copies of
    the border's pixels; Pillow alone would pass the border through, as a bright frame.

    Args:
        images: (N, 1, H, W) in [-1, 1].

    Returns:
        (N, 1, H, W) float32 in [0, 1]: 0 = no brighter than the neighbours, 1 = by 255 grey levels in sum, or more.

    Raises:
        ValueError: If images are not of one channel, or not in [-1, 1].
    """
    from PIL import Image, ImageFilter

    levels = np.rint(_grey(images) * 255.0).astype(np.uint8)
    padded = np.pad(levels, ((0, 0), (1, 1), (1, 1)), mode="edge")
    found = [np.asarray(Image.fromarray(image).filter(ImageFilter.FIND_EDGES))[1:-1, 1:-1] for image in padded]
    return torch.from_numpy(np.stack(found)).unsqueeze(1).float() / 255.0


def sobel_edges(images: Tensor) -> Tensor:
    """Return the magnitude of the Sobel gradient, ``scipy.ndimage.sobel`` along both axes.

    Divided by its largest possible value, so that nothing is clipped: a straight step from black to white along an axis
    gives 4 / sqrt(20) = 0.89 on both sides of it, a ramp of s per pixel (in [-1, 1]) 4 s / sqrt(20). At the border the
    pixels that are missing are copies of the border's.

    Args:
        images: (N, 1, H, W) in [-1, 1].

    Returns:
        (N, 1, H, W) float32 in [0, 1].

    Raises:
        ValueError: If images are not of one channel, or not in [-1, 1].
    """
    from scipy import ndimage

    found = [np.hypot(*(ndimage.sobel(image, axis, mode="nearest") for axis in (0, 1))) for image in _grey(images)]
    return torch.from_numpy(np.stack(found) / _STEEPEST).unsqueeze(1).float()


def edge_figure(real: Tensor, generated: Tensor, count: int = 6) -> "Figure":
    """Draw images above their edges, real ones first (figure 3.10).

    Edges are dark on white. White is 0; black is the 99.5th percentile of a detector's output over all real and
    generated images that are drawn, so that a detector's two rows can be compared.

    Args:
        real: (N, 1, H, W) in [-1, 1]; the first ``count`` are drawn.
        generated: (M, 1, H, W) in [-1, 1], of any size; the first ``count`` are drawn.
        count: Images of each set, and columns; fewer where a set has fewer.

    Raises:
        ValueError: If there is nothing to draw, or images are not of one channel, or not in [-1, 1].
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    count = min(count, len(real), len(generated))
    sets = {"real": real[:count], "generated": generated[:count]}
    simple = {name: simple_edges(images) for name, images in sets.items()}
    sobel = {name: sobel_edges(images) for name, images in sets.items()}
    black_simple, black_sobel = _black(simple), _black(sobel)
    heights = [float(images.shape[2] / images.shape[3]) for images in sets.values() for _ in range(3)]
    side = 9.0 / max(count, 6)
    tight = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=(0.8 + side * count, 0.2 + side * sum(heights)), layout=tight)
    grid = figure.subplots(6, count, squeeze=False, height_ratios=heights)
    for first, (name, images) in zip((0, 3), sets.items(), strict=True):
        _row(grid[first], images, name, "grey", -1.0, 1.0)
        _row(
            grid[first + 1], simple[name], f"{name}\nsimple edges\nblack: {black_simple:.2f}", "gray_r", 0, black_simple
        )
        _row(grid[first + 2], sobel[name], f"{name}\nSobel\nblack: {black_sobel:.2f}", "gray_r", 0, black_sobel)
    return figure


def _grey(images: Tensor) -> np.ndarray:
    """Return images (N, 1, H, W) in [-1, 1] as (N, H, W) float64 in [0, 1]."""
    if images.ndim != 4 or images.shape[1] != 1 or not images.numel():
        raise ValueError(f"expected grey images (N, 1, H, W), at least one, got shape {tuple(images.shape)}")
    low, high = float(images.min()), float(images.max())
    if not (-1.001 <= low and high <= 1.001):
        raise ValueError(f"expected images in [-1, 1], got {low:.3g} .. {high:.3g}")
    return (images.detach().to("cpu", torch.float64)[:, 0].numpy().clip(-1.0, 1.0) + 1.0) / 2.0


def _black(edges: dict[str, Tensor]) -> float:
    """Return the value that is drawn black, the same for both sets."""
    every = np.concatenate([found.flatten().numpy() for found in edges.values()])
    return float(np.percentile(every, _BLACK)) or 1.0  # where there is hardly an edge, all of the scale


def _row(places: "list[Axes]", images: Tensor, label: str, colours: str, low: float, high: float) -> None:
    for axes, image in zip(places, images.detach().cpu(), strict=True):
        axes.imshow(image[0].numpy(), cmap=colours, vmin=low, vmax=high, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#bbbbbb")
    places[0].set_ylabel(label, fontsize=10)
