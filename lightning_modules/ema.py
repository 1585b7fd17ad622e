"""Exponential moving average of a generator's weights, as pure functions."""

import copy
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def frozen_copy(network: Network) -> Network:
    """Return a copy in evaluation mode that no optimizer will train."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def ema_decay(images: int, images_seen: int, half_life_images: float, ramp_up: float | None) -> float:
    """Return the decay for an update that covers ``images`` images: 0.5 ** (images / half-life).

    Counting the half-life in images keeps the average the same for every batch size and number of devices.

    Args:
        images: Images shown since the last update, over all processes.
        images_seen: The clock after those images.
        half_life_images: Images after which an old weight counts half.
        ramp_up: The half-life is at most ``ramp_up * images_seen``, so that the random initial weights
            are forgotten early (Karras 2020b, 0.05); None = no ramp-up.
    """
    if ramp_up is not None:
        half_life_images = min(half_life_images, ramp_up * images_seen)
    return 0.5 ** (images / max(half_life_images, 1e-8))


@torch.no_grad()
def ema_update(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Set average = decay * average + (1 - decay) * network in place; buffers are copied as they are."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1.0 - decay)
    for mean_buffer, buffer in zip(average.buffers(), network.buffers(), strict=True):
        mean_buffer.copy_(buffer)
