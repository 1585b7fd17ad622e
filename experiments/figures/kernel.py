"""What the learnable kernel does: figures 3.1, 3.2 and 3.11 of Sahakyan 2024, section 3.1.1.

The paper shows the kernel (figure 3.1), a surface convolved with such a kernel (figure 3.2), and images of an untrained
generator under the title "Learnable kernel's impact" (figure 3.11).

Open in the text, and chosen here:
    What the impact is compared with: the same generator, its kernel left out (in place of the identity), so that
        nothing else differs. This shows what the kernel does within a network that was trained with it. It does not
        show what training without a kernel would have given: the linear layer before it could have learned the same
        (see networks/kidney.py), so that takes another run.
    When: before training, as in the paper, and beside it after training.
    The surface: the generator's own first layer, instead of a toy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_modules.networks.kidney import Generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_SIGNED = "RdBu_r"


def kernel_change(start: Generator, trained: Generator) -> float:
    """Return by how much training changed the kernel, |K_trained - K_start| / |K_start| (Frobenius norms).

    0 = not at all; about 1.4 = as much as drawing another kernel would; infinite if the first kernel is 0 everywhere.

    Raises:
        ValueError: If a generator has no kernel, or the kernels differ in size.
    """
    before, after = _kernel(start), _kernel(trained)
    if before.shape != after.shape:
        raise ValueError(f"kernels of different sides: {len(before)} and {len(after)}")
    return float(torch.linalg.norm(after - before) / torch.linalg.norm(before))


def kernel_figure(start: Generator, trained: Generator, latents: Tensor) -> "Figure":
    """Draw the kernel of a generator before and after training, and what it does to the first layer and the images.

    Left the generator before, right after training. On top the kernel. Below it a row for each latent: the linear layer
    before the kernel, after it, the image, and the image that the same network draws if the kernel is left out. Red is
    positive, blue negative; each kind of map has one scale for both generators, written above it. Generators run in
    evaluation mode and stay as they are.

    Args:
        start: Generator of grey images with a kernel, before training.
        trained: The same one after training.
        latents: (k, latent_dim), k from 1; three or four fill a page.

    Raises:
        ValueError: If there is no latent, or a generator has no kernel or draws colours, or the kernels differ in size.
    """
    from matplotlib.figure import Figure

    if not len(latents):
        raise ValueError("no latents: at least one is needed")
    change = kernel_change(start, trained)
    drawn = {"before training": _draw(start, latents), "after training": _draw(trained, latents)}
    kernels, before, after = (
        _largest([getattr(found, name) for found in drawn.values()]) for name in ("kernel", "before", "after")
    )
    height = max(found.images.shape[2] / found.images.shape[3] for found in drawn.values())
    figure = Figure(figsize=(11, 2.2 + 0.6 + 1.32 * height * len(latents)), layout="constrained")
    for half, (when, found) in zip(figure.subfigures(1, 2, squeeze=False, wspace=0.04)[0], drawn.items(), strict=True):
        half.suptitle(when, fontsize=13)
        top, below = half.subfigures(2, 1, height_ratios=[2.2, 0.4 + 1.32 * height * len(latents)])
        note = f", changed by {100 * change:.0f} %" if when == "after training" else ""
        _kernel_map(top.subplots(), found.kernel, kernels, note)
        _rows(below, found, before, after)
    return figure


@dataclass(frozen=True)
class _Drawn:
    """What a generator makes of k latents; images (k, 1, H, W), maps (k, 1, height, width), kernel (side, side)."""

    kernel: Tensor
    before: Tensor
    after: Tensor
    images: Tensor
    without: Tensor


@torch.no_grad()
def _draw(generator: Generator, latents: Tensor) -> _Drawn:
    """Run a generator in evaluation mode, with the kernel and without it."""
    kernel, was_training = _kernel(generator), generator.training
    generator.eval()
    latents = latents.to(next(generator.parameters()).device)
    before, after = generator.project(latents), generator.first_layer(latents)
    images, without = generator.from_first_layer(after), generator.from_first_layer(before)
    generator.train(was_training)
    if images.shape[1] != 1:
        raise ValueError(f"images of {images.shape[1]} channels: the figure shows grey ones, of one channel")
    return _Drawn(kernel, before.cpu(), after.cpu(), images.cpu(), without.cpu())


def _kernel(generator: Generator) -> Tensor:
    """Return the kernel (side, side) float64."""
    if generator.kernel is None:
        raise ValueError("the generator has no kernel: it was built with kernel=null")
    return generator.kernel.detach().to("cpu", torch.float64)[0, 0]


def _largest(maps: Sequence[Tensor]) -> float:
    return max(float(values.abs().max()) for values in maps) or 1.0


def _kernel_map(axes: "Axes", kernel: Tensor, most: float, note: str) -> None:
    axes.imshow(kernel.numpy(), cmap=_SIGNED, vmin=-most, vmax=most)
    for (row, column), value in [((i, j), float(kernel[i, j])) for i in range(len(kernel)) for j in range(len(kernel))]:
        colour = "white" if abs(value) > 0.6 * most else "black"
        axes.text(
            column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=min(10, 45 / len(kernel))
        )
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(f"kernel{note}", fontsize=11)


def _rows(place: "SubFigure", found: _Drawn, before: float, after: float) -> None:
    columns = (
        (f"first layer\nbefore kernel\n±{before:.2g}", found.before, _SIGNED, before),
        (f"first layer\nafter kernel\n±{after:.2g}", found.after, _SIGNED, after),
        ("image\n\n", found.images, "gray", 1.0),
        ("image,\nkernel\nleft out", found.without, "gray", 1.0),
    )
    grid = place.subplots(len(found.images), len(columns), squeeze=False)
    for column, (title, maps, colours, most) in enumerate(columns):
        grid[0, column].set_title(title, fontsize=10)
        for axes, values in zip(grid[:, column], maps, strict=True):
            axes.imshow(values[0].numpy(), cmap=colours, vmin=-most, vmax=most, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
