"""Building blocks and shape rules that several families share."""

from collections.abc import Sequence

from torch import Tensor, nn

SMALLEST_GRID = 4


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


def init_normal(network: nn.Module, std: float = 0.02) -> None:
    """Draw weights from N(0, 0.02^2), batch-norm scales from N(1, 0.02^2); biases are 0 (Radford 2016, section 4)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, 0.0, std)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, std)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
