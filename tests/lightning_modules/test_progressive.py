"""The progressive GAN: table 2 of Karras 2018, stage by stage, and what its steps train."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_modules.losses import LogisticR1, WassersteinGP
from lightning_modules.networks.layers import EqualizedConv2d, EqualizedLinear, minibatch_std, pixel_norm
from lightning_modules.networks.progressive import (
    Discriminator,
    Generator,
    channel_counts,
    downsample,
    upsample,
)
from lightning_modules.progressive_gan import ProgressiveGAN, fade
from lightning_modules.schedules import ProgressiveSchedule

FULL = channel_counts(8, 8192, 512)


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def table_2(image_channels, pixels):
    """Parameters of both reference networks, written out from table 2 (plus one toRGB and fromRGB per stage)."""
    widths = [512, 512, 512, 512, 256, 128, 64, 32, 16]

    def conv(before, after, kernel=3):
        return before * after * kernel**2 + after

    generator = 512 * 512 * pixels + 512 + conv(512, 512)
    discriminator = conv(513, 512) + 512 * pixels * 512 + 512 + 512 + 1
    for before, after in itertools.pairwise(widths):
        generator += conv(before, after) + conv(after, after)
        discriminator += conv(after, after) + conv(after, before)
    generator += sum(conv(width, image_channels, 1) for width in widths)
    discriminator += sum(conv(image_channels, width, 1) for width in widths)
    return generator, discriminator


def test_channels_are_the_papers():
    assert FULL == [512, 512, 512, 512, 256, 128, 64, 32, 16]


@pytest.mark.parametrize(
    "size, channels, expected",
    [
        ((1024, 1024), 3, (23_079_115, 23_087_249)),
        ((1024, 1024), 1, (23_074_009, 23_082_161)),
        ((1280, 1024), 1, (24_122_585, 24_130_737)),
    ],
)
def test_parameters_of_the_full_size_networks(size, channels, expected):
    found = parameters(Generator(512, size, channels, FULL)), parameters(Discriminator(size, channels, FULL))
    assert found == expected
    assert found == table_2(channels, size[0] * size[1] // 4**8)


@pytest.mark.parametrize("size, channels", [((1024, 1024), 3), ((1024, 1024), 1), ((1280, 1024), 1)])
def test_shapes_of_every_stage_up_to_full_size(size, channels):
    """Thin networks: the shapes do not depend on the width."""
    generator, discriminator = Generator(8, size, channels, [2] * 9), Discriminator(size, channels, [2] * 9)
    for stage in range(9):
        for network in (generator, discriminator):
            network.set_stage(stage, 0.5)
        with torch.no_grad():
            images = generator(torch.randn(1, 8))
            assert images.shape == (1, channels, size[0] >> (8 - stage), size[1] >> (8 - stage))
            assert discriminator(images).shape == (1,)


@pytest.mark.parametrize("size", [(32, 32), (40, 32)])
@pytest.mark.parametrize("alpha", [0.4, 1.0])
@pytest.mark.parametrize("stage", range(4))
def test_gradient_reaches_what_the_stage_uses_and_nothing_else(size, stage, alpha):
    generator, discriminator = Generator(8, size, 1, [8, 8, 4, 4]), Discriminator(size, 1, [8, 8, 4, 4])
    for network in (generator, discriminator):
        network.set_stage(stage, alpha)
    discriminator(generator(torch.randn(4, 8))).square().sum().backward()
    fading = {stage - 1} if alpha < 1.0 and stage > 0 else set()
    for network, image_side in ((generator, "to_image"), (discriminator, "from_image")):
        for name, parameter in network.named_parameters():
            part, *rest = name.split(".")
            used = (
                part in ("first", "last")
                or (part == "blocks" and int(rest[0]) < stage)
                or (part == image_side and int(rest[0]) in {stage} | fading)
            )
            assert (parameter.grad is not None) == used, name
            if used:
                assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, name


def test_fade_begins_as_the_stage_before_and_ends_as_the_new_one():
    generator, discriminator = Generator(8, (40, 32), 1, [8, 8, 4, 4]), Discriminator((40, 32), 1, [8, 8, 4, 4])
    latents = torch.randn(4, 8)
    for stage in (1, 2, 3):
        pictures, scores = {}, {}
        for at, alpha in ((stage - 1, 1.0), (stage, 0.0), (stage, 0.25), (stage, 1.0)):
            generator.set_stage(at, alpha)
            pictures[at, alpha] = generator(latents)
        torch.testing.assert_close(pictures[stage, 0.0], upsample(pictures[stage - 1, 1.0]))
        mixed = torch.lerp(pictures[stage, 0.0], pictures[stage, 1.0], 0.25)
        torch.testing.assert_close(pictures[stage, 0.25], mixed)
        images = torch.randn(4, 1, 5 << stage, 4 << stage)
        discriminator.set_stage(stage, 0.0)
        scores["new"] = discriminator(images)
        discriminator.set_stage(stage - 1, 1.0)
        scores["old"] = discriminator(downsample(images))
        torch.testing.assert_close(scores["new"], scores["old"])


def test_real_images_fade_as_the_paper_says():
    images = torch.randn(2, 1, 10, 8)
    assert torch.equal(fade(images, 1.0), images)
    coarse = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2)
    torch.testing.assert_close(fade(images, 0.0), coarse)
    torch.testing.assert_close(fade(images, 0.3), 0.3 * images + 0.7 * coarse)


# Layers ---------------------------------------------------------------------------------------------------------------


def test_equalised_layers_keep_the_variance_of_he():
    torch.manual_seed(0)
    images = torch.randn(8, 64, 16, 16)
    assert float(EqualizedConv2d(64, 128, 3)(images).detach()[..., 1:-1, 1:-1].var()) == pytest.approx(2.0, rel=0.1)
    assert float(EqualizedConv2d(64, 128, 1, gain=1.0)(images).detach().var()) == pytest.approx(1.0, rel=0.1)
    assert float(EqualizedLinear(64, 999, gain=1.0)(images[0].flatten(1).T).detach().var()) == pytest.approx(
        1.0, rel=0.1
    )
    assert float(EqualizedConv2d(64, 128, 3).weight.detach().std()) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("kernel", [1, 3])
def test_equalised_convolution_is_a_convolution_with_scaled_weights(kernel):
    layer, images = EqualizedConv2d(5, 7, kernel), torch.randn(2, 5, 6, 4)
    nn.init.normal_(layer.bias)
    expected = F.conv2d(images, layer.weight * (2.0 / (5 * kernel**2)) ** 0.5, layer.bias, padding=kernel // 2)
    torch.testing.assert_close(layer(images), expected)


def test_pixel_norm_makes_every_feature_vector_as_long():
    normed = pixel_norm(torch.randn(2, 16, 5, 4) * 30)
    torch.testing.assert_close(normed.square().mean(dim=1), torch.ones(2, 5, 4), rtol=1e-4, atol=1e-4)
    assert torch.isfinite(pixel_norm(torch.zeros(2, 4))).all()


def test_minibatch_std_is_the_mean_deviation_of_groups_of_four():
    features = torch.randn(8, 3, 5, 4, dtype=torch.double)
    out = minibatch_std(features)
    assert out.shape == (8, 4, 5, 4)
    assert torch.equal(out[:, :3], features)
    values = {round(float(v), 9) for v in out[:, 3].flatten()}
    assert len(values) == 2  # one per group
    groups = [features[i::2] for i in range(2)]
    expected = sorted(float(group.std(dim=0, correction=0).mean()) for group in groups)
    assert sorted(values) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n, groups", [(3, 1), (6, 1), (4, 1), (12, 3), (1, 1)])
def test_minibatch_std_of_other_batches(n, groups):
    statistic = minibatch_std(torch.randn(n, 2, 4, 4))[:, 2, 0, 0]
    assert len({round(float(v), 6) for v in statistic}) == groups


def test_minibatch_std_keeps_real_and_generated_images_apart():
    real, fake = torch.randn(4, 3, 4, 4), torch.zeros(4, 3, 4, 4)
    together = minibatch_std(torch.cat([real, fake]), parts=2)
    torch.testing.assert_close(together, torch.cat([minibatch_std(real), minibatch_std(fake)]))


def test_minibatch_std_has_a_finite_gradient_for_equal_images():
    features = torch.ones(4, 2, 4, 4, requires_grad=True)
    minibatch_std(features).sum().backward()
    assert torch.isfinite(features.grad).all()


def test_one_forward_of_real_and_generated_images_scores_as_two():
    discriminator = Discriminator((40, 32), 1, [8, 8, 4, 4])
    real, fake = torch.randn(2, 4, 1, 40, 32)
    together = discriminator(torch.cat([real, fake]), parts=2)
    torch.testing.assert_close(together, torch.cat([discriminator(real), discriminator(fake)]))


# The step -------------------------------------------------------------------------------------------------------------

SCHEDULE = ProgressiveSchedule((40, 32), 8, 80, 80)


def gan(**arguments):
    torch.manual_seed(0)
    return ProgressiveGAN(SCHEDULE, 0, (40, 32), latent_dim=8, channels=[16, 16, 8, 8], **arguments)


def at(module, stage, alpha):
    for network in (module.generator, module.generator_ema, module.discriminator):
        network.set_stage(stage, alpha)
    return module


def penalty_gradient(module, images, fakes, mixed):
    module.discriminator.zero_grad()
    loss = WassersteinGP()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        terms = loss.discriminator(module.discriminator, images, fakes, torch.Generator().manual_seed(3))
    terms["penalty"].backward()
    return torch.cat([p.grad.flatten() for p in module.discriminator.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    "stage, alpha, trained",
    [
        (1, 1.0, False),
        (1, 1.0, True),
        (3, 0.5, False),
        pytest.param(3, 1.0, True, marks=pytest.mark.slow),
        pytest.param(3, 0.5, True, marks=pytest.mark.slow),
        pytest.param(3, 1.0, False, marks=pytest.mark.slow),
    ],
)
def test_penalty_in_bf16_has_the_parameter_gradient_of_float32_within_one_percent(stage, alpha, trained):
    """At the start, and after training, where the gradient's norm is near 1 and the penalty's own gradient small."""
    torch.manual_seed(0)
    module = ProgressiveGAN(SCHEDULE, 0, (40, 32), latent_dim=32, channels=[64, 64, 64, 32])
    at(module, stage, alpha)
    images = torch.rand(8, 1, 5 << stage, 4 << stage) * 2 - 1
    with torch.no_grad():
        fakes = module.generator(torch.randn(8, 32))
    if trained:
        optimizer = torch.optim.Adam(module.discriminator.parameters(), 1e-3, (0.0, 0.99))
        for step in range(60):
            optimizer.zero_grad()
            random = torch.Generator().manual_seed(step)
            sum(WassersteinGP().discriminator(module.discriminator, images, fakes, random).values()).backward()
            optimizer.step()
    exact = penalty_gradient(module, images, fakes, mixed=False)
    mixed = penalty_gradient(module, images, fakes, mixed=True)
    assert not torch.equal(exact, mixed)  # the derivatives were bf16
    assert float((mixed - exact).norm() / exact.norm()) < 0.01


def test_without_autocast_a_float32_forward_is_an_ordinary_one():
    module = at(gan(), 2, 0.5)
    real, fake = torch.randn(2, 4, 1, 20, 16)
    exact, mixed = (
        WassersteinGP(penalty_precision=precision).discriminator(
            module.discriminator, real, fake, torch.Generator().manual_seed(3)
        )["penalty"]
        for precision in ("float32", "mixed")
    )
    assert torch.equal(exact, mixed)


def test_penalty_in_float32_ignores_autocast():
    module = at(gan(), 2, 1.0)
    real, fake = torch.randn(2, 4, 1, 20, 16)
    values = []
    for mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = WassersteinGP(penalty_precision="float32")
            random = torch.Generator().manual_seed(3)
            values.append(loss.discriminator(module.discriminator, real, fake, random)["penalty"])
    assert torch.equal(*values)


def test_wasserstein_loss_has_the_papers_terms():
    def scores(images, parts=1):
        return images.mean(dim=(1, 2, 3)) * 3.0

    real, fake = torch.full((4, 1, 2, 2), 2.0), torch.full((4, 1, 2, 2), 1.0)
    terms = WassersteinGP(drift=0.5).discriminator(scores, real, fake, torch.Generator().manual_seed(0))
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(
        {"wasserstein": 3.0 - 6.0, "penalty": 10.0 * (3.0 / 2.0 - 1.0) ** 2, "drift": 0.5 * 36.0}, rel=1e-5
    )


def test_logistic_loss_with_r1():
    def scores(images, parts=1):
        return images.mean(dim=(1, 2, 3)) * 3.0

    real, fake = torch.full((4, 1, 2, 2), 2.0), torch.full((4, 1, 2, 2), 1.0)
    terms = LogisticR1(gamma=10.0).discriminator(scores, real, fake, torch.Generator())
    assert float(terms["penalty"]) == pytest.approx(5.0 * 4 * (3.0 / 4.0) ** 2)
    expected = F.softplus(torch.tensor(-6.0)) + F.softplus(torch.tensor(3.0))
    assert float(terms["logistic"]) == pytest.approx(float(expected))


@pytest.mark.parametrize("loss", [WassersteinGP(), LogisticR1()])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_both_losses_train_both_networks(loss, alpha):
    module = at(gan(loss=loss), 2, alpha)
    batch = {"image": torch.rand(4, 1, 20, 16) * 2 - 1, "images_seen": 0}
    for losses, network in (
        (module.discriminator_losses, module.discriminator),
        (module.generator_losses, module.generator),
    ):
        module.zero_grad()
        terms = losses(batch)
        assert all(torch.isfinite(term) and term.dtype == torch.float32 for term in terms.values())
        sum(terms.values()).backward()
        assert sum(float(p.grad.abs().sum()) for p in network.parameters() if p.grad is not None) > 0


def test_activation_checkpointing_changes_no_gradient():
    """Also through the double backward of the penalty."""
    kept = at(gan(), 3, 0.5)
    recomputed = at(gan(checkpoint_from=2), 3, 0.5)
    recomputed.load_state_dict(kept.state_dict())
    batch = {"image": torch.rand(4, 1, 40, 32) * 2 - 1, "images_seen": 0}
    for module in (kept, recomputed):
        sum(module.discriminator_losses(batch).values()).backward()
        sum(module.generator_losses(batch).values()).backward()
    compared = 0
    for (name, p), q in zip(kept.named_parameters(), recomputed.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-7, msg=name)
            compared += 1
    assert compared > 30


def test_sample_has_the_size_of_the_present_stage():
    module = gan()
    for stage in range(4):
        at(module, stage, 0.5)
        images = module.sample(3)
        assert images.shape == (3, 1, 5 << stage, 4 << stage)
        assert float(images.abs().max()) <= 1.0
    first = module.sample(2, seed=4)
    torch.testing.assert_close(first[1:], module.sample(1, seed=4, start=1))


def test_networks_that_are_not_where_the_clock_says_are_refused():
    module = gan()
    module.images_seen = 120
    with pytest.raises(RuntimeError, match=r"stage 0, alpha 1; the schedule is at stage 1.*callbacks\.fade_in\.FadeIn"):
        module.training_step({"image": torch.zeros(8, 1, 10, 8), "images_seen": 120}, 0)


def test_averaged_generator_is_a_copy_that_grows_along():
    module = gan()
    module.set_point(SCHEDULE.at(120))
    assert module.generator_ema.stage == 1 and module.generator_ema.alpha == 0.5
    assert not any(p.requires_grad for p in module.generator_ema.parameters())
    assert copy.deepcopy(module.generator_ema).alpha == 0.5


def test_truncation_is_refused_because_it_would_do_nothing():
    with pytest.raises(ValueError, match=r"truncation=0\.5: this network normalises its latents"):
        gan().sample(1, truncation=0.5)


@pytest.mark.parametrize(
    "loss, arguments",
    [
        (WassersteinGP, {"penalty_weight": -1.0}),
        (WassersteinGP, {"drift": float("nan")}),
        (LogisticR1, {"gamma": float("inf")}),
    ],
)
def test_impossible_weights_of_losses_are_refused(loss, arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name}="):
        loss(**arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"checkpoint_from": 0}, "checkpoint_from=0"),
        ({"channels": [8, 8]}, r"channels=\[8, 8\]: \[40, 32\] is \[5, 4\] doubled 3 times and needs 4 numbers"),
        ({"channels": [8, 8, 8, 0]}, "channels="),
        ({"channels": None, "channel_max": 0}, "channel_max=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ProgressiveGAN(SCHEDULE, 0, (40, 32), **arguments)
