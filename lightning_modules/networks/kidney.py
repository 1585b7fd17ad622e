"""Generator of Sahakyan, "Development of components for generative adversarial networks in medical image synthesis",
American University of Armenia, 2024 (chapter 3): a kernel on the first layer, interpolated copies of earlier layers.

    x_1 = reshape(linear(z)) * kernel                                        one channel on the base grid
    x_i = relu(F_i(x_{i-1}) + sum over the skips b of conv(interpolate(x_{i-b}, 2**b)))
    image = the last such sum, through tanh

F_i is a transposed convolution that doubles height and width. For 64x64 these are the five layers of section 3.2.1, for
128x128 the six of equation 3.3. Where x_{i-b} does not exist the skip is left out (captions of figures 3.8 and 3.9).
The term "+ x" in lines 1 and 3 of equation 3.3 would be the latent: it is no map that could be interpolated, and added
to a linear layer it is part of that layer.

Three things follow from the equations, whatever the weights. The kernel acts on a linear layer, so it changes where
training starts and how steps are scaled, not what can be represented. The same holds for adding a layer twice. And the
image depends on the latent through the 16 numbers of a 4x4 map, normally distributed if the latent is: no latent longer
than that can represent more.

Open in the text, and chosen here:
    Widths: those of DCGAN's generator at the same resolution, so that the rows of the comparison are equally wide.
    F_i: 4x4 with stride 2, as in networks/dcgan.py. Batch norm after it is off by default, as chapter 3 names every
        operation and none normalises. Early on it decides what skips are worth: after 100 generator steps (64x64, width
        16, one seed) the Frechet distance of random features is 15 with skips, 42 without; with batch norm 13 and 15.
    Interpolation: nearest, what PyTorch's ``interpolate`` does with the text's only argument, a scale factor; its
        gradient is deterministic on a GPU.
    Convolution of a copy: 1x1, as its stated purpose is the number of channels (section 3.1.2).
    Adding twice: two convolutions, as each layer that is added is "interpolated and then convoluted".
    Kernel: N(0, 1) is the text's; 3x3, the smallest with a centre, padded with zeros so that the map keeps its size.
    First layer: no activation, as the text calls it affine. The "128" of section 3.2.1 is read as its input, the
        latent: its output is a 4x4 map of one channel.
    Output: tanh instead of ReLU, as images lie in [-1, 1].
    Initialisation: PyTorch's, which does not depend on the width as DCGAN's N(0, 0.02) does. Without skips the latent
        then moves a pixel by 0.002 at first, with them by 0.08 to 0.4 (64x64, with the kernel).
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.networks.dcgan import channel_counts
from lightning_modules.networks.latents import LatentGenerator
from lightning_modules.networks.layers import base_grid

Skips = Literal["none", "previous", "previous_twice", "previous_two"]
LAYERS_BACK: dict[Skips, tuple[int, ...]] = {
    "none": (),
    "previous": (1,),  # Small, section 3.2.1
    "previous_twice": (1, 1),  # Large version 1, section 3.2.2
    "previous_two": (1, 2),  # Large version 2, section 3.2.3
}
Norm = Literal["none", "batch"]


class Block(nn.Module):
    """One layer before its activation: a transposed convolution plus interpolated copies of earlier layers.

    Args:
        channels_before: Channels of all layers before this one, first layer first.
        channels: Channels of this layer.
        layers_back: How many layers each copy comes from; one that reaches beyond the first layer is left out.
        norm: What follows the transposed convolution; copies are not normalised.
    """

    def __init__(self, channels_before: Sequence[int], channels: int, layers_back: Sequence[int], norm: Norm) -> None:
        super().__init__()
        self.layers_back = [back for back in layers_back if back <= len(channels_before)]
        self.upsample = nn.ConvTranspose2d(channels_before[-1], channels, 4, stride=2, padding=1, bias=norm == "none")
        self.norm = nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()
        self.skips = nn.ModuleList(
            nn.Conv2d(channels_before[-back], channels, 1, bias=False) for back in self.layers_back
        )

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """Map all layers before this one, each twice as large as the last, to the sum (N, channels, H, W)."""
        total = self.norm(self.upsample(layers[-1]))
        for back, skip in zip(self.layers_back, self.skips, strict=True):
            # A 1x1 convolution and an interpolation can change places: the smaller image is convolved.
            total = total + F.interpolate(skip(layers[-back]), scale_factor=2.0**back, mode="nearest")
        return total


class Generator(LatentGenerator):
    """Linear layer to one channel on the base grid, an optional kernel, then blocks that see earlier layers.

    Args:
        latent_dim: Length of a latent vector.
        image_size: Height and width in pixels; see ``base_grid``.
        image_channels: Channels of the image, 1 to 4.
        base_channels: Channels of the layer before the image; doubled towards the base grid up to 1024.
        skips: Which earlier layers a block adds: "none" (the baseline of section 4.5.3), "previous" (Small),
            "previous_twice" (Large version 1) or "previous_two" (Large version 2).
        kernel: Side of the square, learnable kernel, odd; None = no kernel. All other weights are drawn before it, so
            that with and without it they are the same for a seed.
        norm: "batch" = batch norm after every transposed convolution but the last.

    Attributes:
        arguments: The constructor's arguments as plain values, from which an exported network is built again.
        kernel: The kernel (1, 1, side, side), or None.

    Raises:
        ValueError: If an argument is impossible.
    """

    kernel: nn.Parameter | None

    def __init__(
        self,
        latent_dim: int,
        image_size: Sequence[int],
        image_channels: int,
        base_channels: int,
        skips: Skips,
        kernel: int | None,
        norm: Norm,
    ) -> None:
        super().__init__()
        if base_channels < 1:
            raise ValueError(f"generator_channels={base_channels}: must be at least 1")
        if skips not in LAYERS_BACK:
            raise ValueError(f"skips={skips!r}: expected one of {', '.join(get_args(Skips))}")
        if kernel is not None and (kernel < 1 or kernel % 2 == 0):
            raise ValueError(f"kernel={kernel}: must be odd, so that the map keeps its size, or null for no kernel")
        if norm not in get_args(Norm):
            raise ValueError(f"norm={norm!r}: expected one of {', '.join(get_args(Norm))}")
        self.arguments = {
            "latent_dim": latent_dim,
            "image_size": list(image_size),
            "image_channels": image_channels,
            "base_channels": base_channels,
            "skips": skips,
            "kernel": kernel,
            "norm": norm,
        }
        grid, doublings = base_grid(image_size)
        hidden = channel_counts(base_channels, doublings)[:-1]  # DCGAN has the widest on the base grid
        channels = [1, *reversed(hidden), image_channels]
        self.project = nn.Sequential(nn.Linear(latent_dim, grid[0] * grid[1]), nn.Unflatten(1, (1, *grid)))
        norms: list[Norm] = [*[norm for _ in hidden], "none"]
        self.blocks = nn.ModuleList(
            Block(channels[:i], channels[i], LAYERS_BACK[skips], norms[i - 1]) for i in range(1, len(channels))
        )
        self.kernel = None if kernel is None else nn.Parameter(torch.randn(1, 1, kernel, kernel))
        self.to(memory_format=torch.channels_last)  # measured 1.2 to 1.7 times as fast as channels first on CPU

    def first_layer(self, latents: Tensor) -> Tensor:
        """Map latents (N, latent_dim) to x_1, (N, 1, height, width) on the base grid."""
        affine = self.project(latents)
        return affine if self.kernel is None else F.conv2d(affine, self.kernel, padding=self.kernel.shape[-1] // 2)

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents (N, latent_dim) to images (N, image_channels, H, W) in [-1, 1]."""
        return self.from_first_layer(self.first_layer(latents))

    def from_first_layer(self, first: Tensor) -> Tensor:
        """Map x_1, (N, 1, height, width) on the base grid, to images (N, image_channels, H, W) in [-1, 1]."""
        layers = [first]
        for block in self.blocks[:-1]:
            layers.append(torch.relu(block(layers)))
        return torch.tanh(self.blocks[-1](layers))
