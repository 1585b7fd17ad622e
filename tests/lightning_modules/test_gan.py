"""The adversarial step: what a phase trains, what it leaves alone, and where its randomness comes from."""

import copy
import itertools

import lightning as L
import pytest
import torch
from torch import nn

from lightning_modules.cadence import CriticSteps, Every
from lightning_modules.dcgan import DCGAN
from lightning_modules.kidney_gan import KidneyGAN
from lightning_modules.networks.latents import seeded_generator
from lightning_modules.schedules import ConstantSchedule
from lightning_modules.step import LossRecord, Phase
from lightning_modules.wgan import WGAN
from lightning_modules.wgan_gp import WGANGP

SIZE, BATCH = (32, 32), 4
SCHEDULE = ConstantSchedule(SIZE, BATCH, 10**6, warmup_images=0)


class Batches(L.LightningDataModule):
    """Random images, drawn for the clock that a module starts at."""

    def facts(self):
        return {"data_set": "random"}

    def train_dataloader(self):
        def stream():
            clock = self.trainer.lightning_module.images_seen
            while True:
                generator = torch.Generator().manual_seed(clock)
                yield {"image": torch.rand(BATCH, 1, *SIZE, generator=generator) * 2 - 1, "images_seen": clock}
                clock += BATCH

        return torch.utils.data.DataLoader(Stream(stream), batch_size=None)


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, make):
        self.make = make

    def __iter__(self):
        return self.make()


def fit(module, batches, **settings):
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        limit_train_batches=batches,
        max_steps=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    module.schedule = ConstantSchedule(SIZE, BATCH, batches * BATCH)
    trainer.fit(module, datamodule=Batches())
    return trainer


def make(family, **arguments):
    torch.manual_seed(0)
    return family(SCHEDULE, seed=0, image_size=SIZE, generator_channels=4, discriminator_channels=4, **arguments)


def weights(network):
    return copy.deepcopy(network.state_dict())


def changed(before, network):
    parameters = dict(network.named_parameters())
    return any(not torch.equal(before[name], parameter) for name, parameter in parameters.items())


@pytest.mark.parametrize("family", [DCGAN, WGANGP, WGAN, KidneyGAN])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_family_trains_both_networks_and_advances_the_clock(family, precision):
    module = make(family)
    adversary = module.discriminator if family is DCGAN else module.critic
    before = weights(module.generator), weights(adversary), weights(module.generator_ema)
    fit(module, 5, precision=precision)
    assert module.images_seen == 5 * BATCH
    assert changed(before[0], module.generator)
    assert changed(before[1], adversary)
    assert not changed(before[2], module.generator_ema)  # only the EMA callback moves it
    assert not module.generator_ema.training
    assert all(torch.isfinite(mean) for mean in module.losses.means().values())
    assert all(p.dtype == torch.float32 for p in module.parameters())


def test_generator_follows_five_critic_steps():
    module = make(WGANGP, critic_steps=5)
    before = weights(module.generator)
    fit(module, 4)
    assert not changed(before, module.generator)
    assert "generator/wasserstein" not in module.losses.means()
    module = make(WGANGP, critic_steps=5)
    fit(module, 10)
    assert module.losses._counts == {"critic/wasserstein": 10, "critic/penalty": 10, "generator/wasserstein": 2}


@pytest.mark.parametrize("cadence", [Every(1), Every(3), CriticSteps(5, many=100, first=25, again=100)])
def test_steps_due_and_cycle_are_what_counting_batches_gives(cadence):
    ends = [cadence.batches(step + 1) - 1 for step in range(300)]  # index of the batch of each step
    assert cadence.batches(0) == 0 and all(a < b for a, b in itertools.pairwise(ends))
    for index in range(ends[-1]):
        assert cadence.due(index) == (index in ends)
        assert cadence.steps(index) == sum(end < index for end in ends)
        before = max((end for end in ends if end < index), default=-1)
        assert cadence.cycle(index) == min(end for end in ends if end >= index) - before


def test_critic_steps_of_va_gan():
    """100 critic steps in the first 25 steps of the generator and in every 100th, else 5."""
    cadence = CriticSteps(5, many=100, first=25, again=100)
    lengths = [cadence.batches(step + 1) - cadence.batches(step) for step in range(350)]
    assert lengths == [100 if step < 25 or step % 100 == 0 else 5 for step in range(350)]
    never = CriticSteps(5, many=100, first=0, again=7)
    assert [never.batches(step + 1) - never.batches(step) for step in range(9)] == [100, *[5] * 6, 100, 5]
    with pytest.raises(ValueError, match="usual=0: must be at least 1"):
        CriticSteps(0, many=1, first=0, again=1)


def test_phase_is_due_in_the_last_batch_of_each_n():
    assert [index for index in range(9) if Every(3).due(index)] == [2, 5, 8]
    assert all(Phase("x", 0, dict).cadence.due(index) for index in range(3))


def test_phase_leaves_no_gradient_on_the_other_network():
    module = make(DCGAN)
    seen = []
    losses = module.generator_losses

    def spy(batch):
        seen.append([p.requires_grad for p in module.discriminator.parameters()])
        return losses(batch)

    module.generator_losses = spy
    fit(module, 1)
    assert seen == [[False] * len(list(module.discriminator.parameters()))]
    assert all(p.requires_grad for p in module.discriminator.parameters())


def test_wgan_clips_every_weight_of_the_critic():
    module = make(WGAN, clip=0.01)
    fit(module, 1)
    assert max(float(p.detach().abs().max()) for p in module.critic.parameters()) <= 0.01


def test_gradient_clipping_bounds_the_step():
    plain, clipped = make(WGAN, clip=100.0), make(WGAN, clip=100.0, gradient_clip_norm=1e-3)
    norms = {}
    for name, module in (("plain", plain), ("clipped", clipped)):
        optimizers = [
            torch.optim.SGD(module.critic.parameters(), 1.0),
            torch.optim.SGD(module.generator.parameters(), 1.0),
        ]
        module.configure_optimizers = lambda optimizers=optimizers: optimizers
        before = weights(module.critic)
        fit(module, 1)
        moves = [before[key] - parameter.detach() for key, parameter in module.critic.named_parameters()]
        norms[name] = float(torch.cat([move.flatten() for move in moves]).norm())
    assert norms["plain"] > 0.01
    assert norms["clipped"] == pytest.approx(1e-3, rel=1e-3)


def test_learning_rate_follows_the_clock():
    module = make(DCGAN, learning_rate=1e-3)
    fit(module, 2)
    scaled = ConstantSchedule(SIZE, BATCH, 100, decay_from_images=0)
    module.schedule = scaled
    module.run_phase(module.phases()[0], batch_at(module), scaled.at(50))
    assert module._optimizers()[0].param_groups[0]["lr"] == pytest.approx(0.5e-3)


def batch_at(module):
    return {"image": torch.zeros(BATCH, 1, *SIZE), "images_seen": module.images_seen}


def test_batch_of_another_clock_is_refused():
    module = make(DCGAN)
    with pytest.raises(RuntimeError, match="images_seen=8, the module is at 0"):
        module.training_step({**batch_at(module), "images_seen": 8}, 0)


def test_batch_of_another_shape_is_refused():
    module = make(DCGAN)
    with pytest.raises(ValueError, match=r"got images of shape \(4, 3, 32, 32\), expected \(N, 1, 32, 32\)"):
        module.training_step({"image": torch.zeros(BATCH, 3, *SIZE), "images_seen": 0}, 0)


def test_randomness_is_a_function_of_seed_clock_rank_and_use(monkeypatch):
    module = make(DCGAN)
    first = module.draw_latents(3, "a")
    assert torch.equal(first, module.draw_latents(3, "a"))
    assert not torch.equal(first, module.draw_latents(3, "b"))
    module.images_seen = 8
    assert not torch.equal(first, module.draw_latents(3, "a"))
    module.images_seen = 0
    module.seed = 1
    assert not torch.equal(first, module.draw_latents(3, "a"))
    module.seed = 0
    monkeypatch.setattr(DCGAN, "global_rank", 1)
    assert not torch.equal(first, module.draw_latents(3, "a"))


def test_seeded_generators_do_not_touch_the_global_one():
    before = torch.get_rng_state()
    torch.rand(2, generator=seeded_generator("cpu", 1, "x"))
    assert torch.equal(before, torch.get_rng_state())


def test_a_step_does_not_draw_from_the_global_generator():
    results = []
    for seed in (1, 2):
        module = make(WGANGP)
        torch.manual_seed(seed)
        fit(module, 5)
        results.append(weights(module.generator))
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


@pytest.mark.parametrize("family", [DCGAN, WGANGP])
def test_samples_depend_on_seed_and_index_alone(family):
    module = make(family)
    ten = module.sample(10, seed=3)
    assert ten.shape == (10, 1, *SIZE)
    assert ten.dtype == torch.float32
    assert float(ten.min()) >= -1 and float(ten.max()) <= 1
    torch.testing.assert_close(module.sample(4, seed=3, start=6), ten[6:])
    assert not torch.equal(module.sample(10, seed=4), ten)


def test_sample_chooses_the_generator_by_name_and_leaves_it_in_its_mode():
    module = make(DCGAN)
    nn.init.zeros_(module.generator.upsample[-2].weight)
    assert float(module.sample(2, ema=False).abs().max()) == 0.0
    assert float(module.sample(2, ema=True).abs().max()) > 0.0
    assert module.generator.training and not module.generator_ema.training


def test_truncation_zero_gives_one_image():
    images = make(WGANGP).sample(3, truncation=0.0)
    torch.testing.assert_close(images[0], images[2])


def test_unconditional_family_refuses_labels():
    with pytest.raises(ValueError, match="DCGAN is unconditional"):
        make(DCGAN).sample(1, labels=torch.ones(1, 4))


def test_dcgan_draws_uniform_latents_and_wgan_gp_normal_ones():
    assert float(make(DCGAN).draw_latents(1000, "x").abs().max()) <= 1.0
    assert float(make(WGANGP).draw_latents(1000, "x").std()) == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize(
    "arguments",
    [
        {"image_channels": 5},
        {"image_channels": 0},
        {"latent_dim": 0},
        {"gradient_clip_norm": 0.0},
        {"image_size": (33, 32)},
        {"image_size": (4, 4)},
    ],
)
def test_impossible_arguments_are_refused_by_name(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name}"):
        DCGAN(**{"schedule": SCHEDULE, "seed": 0, "image_size": SIZE, **arguments})


def test_loss_record_keeps_means_and_the_first_bad_clock():
    record = LossRecord()
    for clock, value in ((0, 1.0), (8, 3.0), (16, float("nan")), (24, float("inf"))):
        record.add("a", torch.tensor(value), clock)
        record.add("b", torch.tensor(2.0), clock)
    assert float(record.means()["b"]) == 2.0
    assert record.first_bad() == ("a", 16)
    record.reset()
    assert record.means() == {} and record.first_bad() is None


def test_loss_record_continues_from_its_state():
    record, other = LossRecord(), LossRecord()
    record.add("a", torch.tensor(1.0), 0)
    record.add("a", torch.tensor(2.0), 8)
    other.load_state_dict(record.state_dict(gather=lambda total: total))
    for one in (record, other):
        one.add("a", torch.tensor(6.0), 16)
    assert float(record.means()["a"]) == float(other.means()["a"]) == 3.0


def test_losses_of_a_checkpoint_follow_the_module_to_its_device(monkeypatch):
    module = DCGAN(SCHEDULE, seed=0, image_size=SIZE)
    module.losses.load_state_dict({"generator/adversarial": [[1.0], 2]})
    monkeypatch.setattr(DCGAN, "_optimizers", lambda self: [])
    module.to("meta").on_train_start()
    assert [mean.device.type for mean in module.losses.means().values()] == ["meta"]
