"""Side-by-side timing: variants take turns, so that other load on the machine falls on all of them."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn


def rates(variants: dict[str, Callable[[], int]], rounds: int = 5) -> dict[str, float]:
    """Return the median rate (items per second) of each variant.

    Args:
        variants: Functions that do some work and return the number of items done.
        rounds: Turns of every variant, after one that is not counted.
    """
    measured: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, work in variants.items():
            start = time.perf_counter()
            items = work()
            if turn:
                measured[name].append(items / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in measured.items()}


def show(title: str, found: dict[str, float], unit: str) -> None:
    """Print rates and their ratios to the first variant."""
    print(f"\n{title}")
    reference = next(iter(found.values()))
    for name, rate in found.items():
        print(f"  {name:<44} {rate:>12,.4g} {unit}  {rate / reference:>8.2f} x")


def repeated(step: Callable[[], object], times: int, items: int) -> Callable[[], int]:
    """Return a function that runs a step of so many items several times."""

    def work() -> int:
        for _ in range(times):
            step()
        return times * items

    return work


@torch.no_grad()
def average_loop(average: nn.Module, network: nn.Module) -> None:
    """Average a network's weights as the peers do, one named parameter after the other."""
    parameters = dict(network.named_parameters())
    for name, mean in average.named_parameters():
        mean.copy_(0.999 * mean + 0.001 * parameters[name])
