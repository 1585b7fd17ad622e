"""A training step of the progressive GAN at the paper's widths: ``python -m experiments.benchmarks.progressive_step``.

The plain step does the same work as the peers do it: float32, channels first, PyTorch's own double backward, real and
generated images scored one after the other, the graph of the fakes kept in the discriminator's step, the
discriminator's gradients computed in the generator's, one optimizer loop per parameter, averaging by a Python loop. It
is handed the same networks, with plain convolutions in place of ours.

On a GPU every row is measured there, and the matrix peak beside it.
"""

import argparse
import copy
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.timing import average_loop, rates, repeated, show
from experiments.running.bare_step import bare_step
from lightning_modules.losses import WassersteinGP
from lightning_modules.networks.layers import EqualizedConv2d
from lightning_modules.progressive_gan import ProgressiveGAN
from lightning_modules.schedules import Point, ProgressiveSchedule

SIZES = {32: 16, 64: 4, 128: 4, 256: 2}  # pixels a side: images of a batch
SCHEDULE = ProgressiveSchedule((1024, 1024), 16, 800_000, 800_000)


class PlainConv2d(nn.Module):
    """An equalised convolution as the peers write it."""

    def __init__(self, layer: EqualizedConv2d) -> None:
        super().__init__()
        self.weight, self.bias, self.scale = layer.weight, layer.bias, layer.scale

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, O, H, W)."""
        return F.conv2d(images, self.weight * self.scale, self.bias, padding=self.weight.shape[-1] // 2)


class ChannelsFirst(nn.Module):
    """Undoes the memory format that our networks ask for."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, images: Tensor) -> Tensor:
        """Pass images on in the peers' memory format."""
        return self.layer(images.contiguous())


def gan(device: torch.device, precision: str = "mixed") -> ProgressiveGAN:
    """Return the paper's networks with one grey channel."""
    torch.manual_seed(0)
    loss = WassersteinGP(penalty_precision="float32" if precision == "float32" else "mixed")
    return ProgressiveGAN(SCHEDULE, 0, (1024, 1024), loss=loss).to(device)


def plain(network: nn.Module) -> nn.Module:
    """Return a network with the peers' convolutions and memory format."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, EqualizedConv2d):
                setattr(parent, name, ChannelsFirst(PlainConv2d(child)))
    return network.to(memory_format=torch.contiguous_format)


def plain_step(module: ProgressiveGAN, point: Point, batch: int) -> Callable[[], None]:
    """Return a function that runs one step in textbook style."""
    module.set_point(point)
    device, generator, discriminator = module.device, plain(module.generator), plain(module.discriminator)
    average = copy.deepcopy(generator)
    optimizers = [
        torch.optim.Adam(network.parameters(), 1e-3, (0.0, 0.99), foreach=False, fused=False)
        for network in (discriminator, generator)
    ]
    real = torch.rand(batch, 1, *point.resolution, device=device) * 2 - 1

    def step() -> None:
        optimizers[0].zero_grad()
        fake = generator(torch.randn(batch, 512, device=device))
        epsilon = torch.rand(batch, 1, 1, 1, device=device)
        mixed = (epsilon * real + (1 - epsilon) * fake.detach()).requires_grad_()
        real_scores = discriminator(real)
        (gradient,) = torch.autograd.grad(discriminator(mixed).sum(), mixed, create_graph=True)
        penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
        drift = real_scores.square().mean()
        (discriminator(fake).mean() - real_scores.mean() + 10 * penalty + 1e-3 * drift).backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        (-discriminator(generator(torch.randn(batch, 512, device=device))).mean()).backward()
        optimizers[1].step()
        average_loop(average, generator)

    return step


def synchronised(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Return a step that has ended when it returns, on a GPU too."""

    def run() -> None:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def matrix_peak(device: torch.device) -> float:
    """Return the measured operations/s of a bf16 product of two 8192 x 8192 matrices."""
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * 8192**3 / min(times)


def work_per_image(point: Point) -> float:
    """Return the operations of a whole step per image: 18 passes as large as one forward pass of one network.

    Generator 1 and discriminator 6 (two images, forward and both gradients) and penalty 6 in one step; generator 3 and
    discriminator 2 in the other. Both networks' forward passes are equally large.
    """
    module = gan(torch.device("cpu"))
    module.set_point(point)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.generator(torch.zeros(1, 512))
    return 18.0 * counter.get_total_flops()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the progressive GAN's step.")
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES), help="pixels a side")
    parser.add_argument("--batch", type=int, help="images of a batch; each size has its own default")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = matrix_peak(device) if device.type == "cuda" else None
    for size in options.sizes:
        batch = options.batch or SIZES.get(size, 1)
        stages = SCHEDULE.stages()
        ends = [*(stage.stage_start for stage in stages[1:]), SCHEDULE.total_images]
        point = SCHEDULE.at(ends[int(math.log2(size)) - 2] - 1)  # nothing is being faded in

        def ours(precision: str, penalty: str = "mixed", point: Point = point, batch: int = batch) -> Callable[[], int]:
            step = bare_step(gan(device, penalty), point, batch, precision)
            return repeated(synchronised(step, device), 1, batch)

        variants = {
            "plain float32": repeated(synchronised(plain_step(gan(device), point, batch), device), 1, batch),
            "Mirage float32": ours("32-true"),
            "Mirage bf16": ours("bf16-mixed"),
            "Mirage bf16, penalty float32": ours("bf16-mixed", "float32"),
        }
        found = rates(variants, options.rounds)
        show(f"Progressive GAN step, {size}x{size}, batch {batch}, paper's widths", found, "images/s")
        if peak:
            share = found["Mirage bf16"] * work_per_image(point) / peak
            print(f"  Mirage bf16 reaches {100 * share:.0f} % of the measured matrix peak, {peak / 1e12:.0f} Tflop/s")


if __name__ == "__main__":
    main()
