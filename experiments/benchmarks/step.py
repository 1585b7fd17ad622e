"""One training step of WGAN-GP at 64x64 against a plain textbook step: ``python -m experiments.benchmarks.step``.

The plain step does the same work as the peers do it: float32, channels first, real and generated images scored one
after the other, the graph of the fakes kept in the critic's step, the critic's gradients computed in the generator's,
the average updated by a Python loop over named parameters, one optimizer loop per parameter.
"""

import copy
from collections.abc import Callable

import torch

from experiments.benchmarks.timing import average_loop, rates, repeated, show
from experiments.running.bare_step import bare_step
from lightning_modules.schedules import ConstantSchedule
from lightning_modules.wgan_gp import WGANGP

BATCH, SIZE, WIDTH, STEPS = 32, 64, 32, 5


def _module() -> WGANGP:
    torch.manual_seed(0)
    schedule = ConstantSchedule((SIZE, SIZE), BATCH, 10**9)
    return WGANGP(schedule, 0, (SIZE, SIZE), 1, 128, WIDTH, WIDTH, penalty_precision="mixed")


def mirage_step(precision: str) -> Callable[[], int]:
    """Return a function that runs one critic and one generator step as WGANGP and PhasedModule do."""
    module = _module()
    return repeated(bare_step(module, module.schedule.at(0), BATCH, precision), STEPS, BATCH)


def plain_step() -> Callable[[], int]:
    """Return a function that runs the same step in textbook style."""
    module = _module()
    generator = module.generator.to(memory_format=torch.contiguous_format)
    critic = module.critic.to(memory_format=torch.contiguous_format)
    average = copy.deepcopy(generator)
    settings = {"lr": 1e-4, "betas": (0.0, 0.9), "foreach": False, "fused": False}
    critic_optimizer = torch.optim.Adam(critic.parameters(), **settings)  # type: ignore[arg-type]
    generator_optimizer = torch.optim.Adam(generator.parameters(), **settings)  # type: ignore[arg-type]
    real = torch.rand(BATCH, 1, SIZE, SIZE) * 2 - 1

    def work() -> int:
        for _ in range(STEPS):
            critic_optimizer.zero_grad()
            fake = generator(torch.randn(BATCH, 128))
            epsilon = torch.rand(BATCH, 1, 1, 1)
            mixed = (epsilon * real + (1 - epsilon) * fake.detach()).requires_grad_()
            (gradient,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
            penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
            (critic(fake).mean() - critic(real).mean() + 10 * penalty).backward()
            critic_optimizer.step()
            generator_optimizer.zero_grad()
            (-critic(generator(torch.randn(BATCH, 128))).mean()).backward()
            generator_optimizer.step()
            average_loop(average, generator)
        return STEPS * BATCH

    return work


def main() -> None:
    """Measure and print."""
    found = rates(
        {
            "plain float32": plain_step(),
            "Mirage float32": mirage_step("32-true"),
            "Mirage bf16": mirage_step("bf16-mixed"),
        }
    )
    show(f"WGAN-GP step, {SIZE}x{SIZE}, batch {BATCH}, {WIDTH} channels", found, "images/s")


if __name__ == "__main__":
    main()
