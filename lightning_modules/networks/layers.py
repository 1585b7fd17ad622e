"""Building blocks and shape rules that several families share."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.networks.convolution import conv2d

SMALLEST_GRID = 4
STD = 0.02  # of initial weights (Radford 2016, section 4)
GROUP = 4  # images that share a deviation, as in the reference implementation of Karras 2018


def base_grid(image_size: Sequence[int]) -> tuple[tuple[int, int], int]:
    """Return the grid that an image size is doubled up from, and the number of doublings.

    64x64 is a 4x4 grid doubled 4 times, 80x64 is 5x4 doubled 4 times. The shorter side of the grid is 4 to 7.

    Args:
        image_size: Height and width in pixels.

    Raises:
        ValueError: If no such grid exists; the message names the nearest size that has one.
    """
    height, width = image_size
    doublings = max(0, (min(height, width) // SMALLEST_GRID).bit_length() - 1)
    step = 2**doublings
    if min(height, width) < SMALLEST_GRID or height % step or width % step:
        nearest = [max(SMALLEST_GRID * step, round(side / step) * step) for side in (height, width)]
        raise ValueError(
            f"image_size={[height, width]}: height and width must be a small grid doubled equally often "
            f"(both multiples of {step} here); nearest is {nearest}"
        )
    return (height // step, width // step), doublings


def check_shape(images: Tensor, channels: int, image_size: Sequence[int]) -> None:
    """Raise ValueError unless images are (N, channels, H, W) of the given size."""
    expected = (channels, *image_size)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected:
        raise ValueError(f"got images of shape {tuple(images.shape)}, expected (N, {', '.join(map(str, expected))})")


def init_normal(network: nn.Module) -> None:
    """Draw weights from N(0, 0.02^2), batch-norm scales from N(1, 0.02^2); biases are 0 (Radford 2016, section 4)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, 0.0, STD)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, STD)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class EqualizedConv2d(nn.Module):
    """Convolution with stride 1 whose weights are N(0, 1) and scaled at run time (Karras 2018, section 4.1).

    He's constant sits in the forward pass instead of in the initial weights, so that Adam's steps, which do not depend
    on the scale of a weight's gradient, are equally large for all layers. Biases start at 0 and are not scaled.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Side of the square kernel, odd; the output is as large as the input.
        gain: sqrt(2) before a leaky ReLU, 1 before nothing.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, gain: float = math.sqrt(2.0)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.scale = gain / math.sqrt(in_channels * kernel**2)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W)."""
        weight = self.weight * self.scale  # the weight, not the images: it is the smaller of the two
        if weight.shape[-1] == 1:
            # A product over the channels: with channels last 2 to 4 times as fast as a 1x1 convolution (measured).
            return F.linear(images.permute(0, 2, 3, 1), weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        return conv2d(images, weight, self.bias, padding=weight.shape[-1] // 2)


class EqualizedLinear(nn.Module):
    """Linear layer with the run-time scale of ``EqualizedConv2d``.

    Args:
        in_features: Length of the input.
        out_features: Length of the output.
        gain: As for ``EqualizedConv2d``.
    """

    def __init__(self, in_features: int, out_features: int, gain: float = math.sqrt(2.0)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.scale = gain / math.sqrt(in_features)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in_features) to (N, out_features)."""
        return F.linear(features, self.weight * self.scale, self.bias)


def pixel_norm(features: Tensor) -> Tensor:
    """Divide each pixel's feature vector by its root mean square over the channels (Karras 2018, section 4.2).

    Args:
        features: (N, C) or (N, C, H, W).
    """
    return features * (features.float().square().mean(dim=1, keepdim=True) + 1e-8).rsqrt().to(features.dtype)


def minibatch_std(features: Tensor, parts: int = 1) -> Tensor:
    """Append one channel: how much the images of a group differ from each other (Karras 2018, section 3).

    Standard deviation over a group of four for each feature and pixel, averaged over features and pixels. A part that
    cannot be cut into groups is one group; a group of one image has a deviation of 0 (up to rounding).

    Args:
        features: (N, C, H, W).
        parts: The batch consists of so many equal parts (real and generated images, say) that share no statistic.

    Returns:
        Features (N, C + 1, H, W).
    """
    n, channels, height, width = features.shape
    size = n // parts
    group = GROUP if size % GROUP == 0 else size
    groups = features.float().reshape(parts, group, size // group, channels, height, width)
    # The constant keeps the derivative of the root finite where all images of a group are equal.
    deviation = (groups.var(dim=1, correction=0) + 1e-8).sqrt().mean(dim=(2, 3, 4))
    per_image = deviation.unsqueeze(1).expand(parts, group, size // group).reshape(n, 1, 1, 1)
    return torch.cat([features, per_image.to(features.dtype).expand(n, 1, height, width)], dim=1)
