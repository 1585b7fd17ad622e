"""Sahakyan's generators: what the kernel and the skips are, and that nothing else changes with them."""

import json
from hashlib import sha256
from statistics import NormalDist
from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_modules.kidney_gan import KidneyGAN
from lightning_modules.networks.exported import ExportedGenerator, describe, load_generator, weights_of
from lightning_modules.networks.kidney import Generator, Skips
from lightning_modules.networks.latents import draw, sample_latents, seeded_generator
from lightning_modules.schedules import ConstantSchedule

SKIPS = get_args(Skips)
SCHEDULE = ConstantSchedule((32, 32), 4, 10**6)


def generator(skips="previous", kernel=3, size=(32, 32), channels=1, latent_dim=8, width=4, norm="none"):
    torch.manual_seed(0)
    return Generator(latent_dim, size, channels, width, skips, kernel, norm)


def make(**arguments):
    torch.manual_seed(0)
    sizes = {"image_size": (32, 32), "generator_channels": 4, "discriminator_channels": 4}
    return KidneyGAN(SCHEDULE, seed=0, **{**sizes, **arguments})


def latents(n=4, latent_dim=8):
    return torch.randn(n, latent_dim, generator=torch.Generator().manual_seed(1))


def shapes(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (64, 64), (128, 128), (80, 64), (64, 80), (96, 64), (40, 32)])
@pytest.mark.parametrize("skips", SKIPS)
def test_images_have_the_size_that_was_asked_for(size, skips):
    images = generator(skips, size=size)(latents(2))
    assert images.shape == (2, 1, *size)
    assert float(images.detach().abs().max()) <= 1.0


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_one_to_four_channels(channels):
    assert generator(channels=channels)(latents()).shape == (4, channels, 32, 32)


@pytest.mark.parametrize("skips", SKIPS)
@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_gradients_reach_the_kernel_and_every_skip(skips, kernel, norm):
    network = generator(skips, kernel, size=(40, 32), norm=norm)
    network(latents()).square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []


def test_a_step_of_training_moves_the_kernel_and_every_skip():
    module = make(skips="previous_two")
    before = {name: p.detach().clone() for name, p in module.generator.named_parameters()}
    loss = module.generator_losses({"image": torch.zeros(4, 1, 32, 32)})["wasserstein"]
    loss.backward()
    module.configure_optimizers()[1].step()
    still = [name for name, p in module.generator.named_parameters() if torch.equal(p, before[name])]
    assert still == [] and "kernel" in before


def test_small_gan_has_the_five_layers_of_section_3_2_1():
    network = generator(size=(64, 64), latent_dim=128, width=64)
    assert network.project[0].weight.shape == (16, 128)
    assert network.first_layer(torch.zeros(2, 128)).shape == (2, 1, 4, 4)
    assert [block.upsample.in_channels for block in network.blocks] == [1, 256, 128, 64]
    assert [block.layers_back for block in network.blocks] == [[1]] * 4


def test_layers_follow_equation_3_3():
    """Version 2 at 32x32, written out: two layers back at a scale of 4, where there is such a layer."""
    network = generator("previous_two")
    one, two, three = network.blocks

    def twice(image):
        return image.repeat_interleave(2, 2).repeat_interleave(2, 3)

    x1 = F.conv2d(network.project(latents()), network.kernel, padding=1)
    x2 = torch.relu(one.upsample(x1) + one.skips[0](twice(x1)))
    x3 = torch.relu(two.upsample(x2) + two.skips[0](twice(x2)) + two.skips[1](twice(twice(x1))))
    x4 = torch.tanh(three.upsample(x3) + three.skips[0](twice(x3)) + three.skips[1](twice(twice(x2))))
    torch.testing.assert_close(network(latents()), x4)


def test_version_1_adds_to_small_a_second_copy_of_the_previous_layer_and_no_more():
    small, version_1 = shapes(generator("previous")), shapes(generator("previous_twice"))
    added = {name: shape for name, shape in version_1.items() if name not in small}
    assert {**small, **added} == version_1
    assert added == {f"blocks.{i}.skips.1.weight": small[f"blocks.{i}.skips.0.weight"] for i in range(3)}


def test_version_1_can_do_what_one_copy_can_do():
    """Two convolutions of one layer are one convolution with the sum of their weights, as networks/kidney.py says."""
    version_1, small = generator("previous_twice"), generator("previous")
    weights = version_1.state_dict()
    for i in range(3):
        weights[f"blocks.{i}.skips.0.weight"] = sum(weights.pop(f"blocks.{i}.skips.{j}.weight") for j in (1, 0))
    small.load_state_dict(weights)
    torch.testing.assert_close(small(latents()), version_1(latents()))


def test_version_2_differs_from_version_1_in_where_the_second_copy_comes_from():
    version_1, version_2 = shapes(generator("previous_twice")), shapes(generator("previous_two"))
    changed = {name for name in version_1 if version_1[name] != version_2.get(name)}
    assert changed == {f"blocks.{i}.skips.1.weight" for i in range(3)}
    assert "blocks.0.skips.1.weight" not in version_2  # there is no layer before the first
    inputs = [version_2[f"blocks.{i}.skips.1.weight"][1] for i in (1, 2)]
    assert inputs == [version_2["project.0.weight"][0] // 16, version_2["blocks.0.upsample.weight"][1]]


def test_without_skips_it_is_a_linear_layer_and_transposed_convolutions():
    network = generator("none", kernel=None)
    names = {f"blocks.{i}.upsample.{kind}" for i in range(3) for kind in ("weight", "bias")}
    assert set(network.state_dict()) == {"project.0.weight", "project.0.bias", *names}


def test_batch_norm_takes_the_place_of_the_bias_in_all_layers_but_the_last():
    plain, normalised = shapes(generator()), shapes(generator(norm="batch"))
    assert set(plain) - set(normalised) == {f"blocks.{i}.upsample.bias" for i in (0, 1)}
    added = {name.rpartition(".")[0] for name in set(normalised) - set(plain)}
    assert added == {"blocks.0.norm", "blocks.1.norm"}


@pytest.mark.parametrize("skips", SKIPS)
def test_the_kernel_is_all_that_its_switch_changes(skips):
    on, off = generator(skips, kernel=5).state_dict(), generator(skips, kernel=None).state_dict()
    assert on.pop("kernel").shape == (1, 1, 5, 5)
    assert on.keys() == off.keys()
    assert all(torch.equal(on[name], off[name]) for name in off)


def test_the_kernel_is_standard_normal_and_convolved_with_the_first_layer():
    assert float(generator(kernel=101).kernel.detach().std()) == pytest.approx(1.0, rel=0.03)
    network = generator(kernel=3)
    affine = network.project(latents()).detach()
    with torch.no_grad():
        network.kernel.zero_()
        network.kernel[0, 0, 1, 2] = 2.0
    shifted = F.pad(affine, (0, 1))[..., 1:]
    torch.testing.assert_close(network.first_layer(latents()).detach(), 2 * shifted)


@pytest.mark.parametrize(
    "arguments",
    [
        {"skips": "both"},
        {"norm": "layer"},
        {"kernel": 2},
        {"kernel": 0},
        {"generator_channels": 0},
        {"image_size": (4, 4)},
    ],
)
def test_impossible_arguments_are_refused_by_name(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name}"):
        make(**arguments)


def test_impossible_arguments_of_the_network_are_refused():
    with pytest.raises(ValueError, match=r"^generator_channels=0"):
        generator(width=0)


def test_truncated_latents_stay_inside_their_bounds_and_have_the_moments_of_equation_a_6():
    """A standard normal cut to [-2, 2] has variance 1 - 4 pdf(2) / (cdf(2) - cdf(-2)) = 0.7737."""
    sample = draw("truncated_normal", 1000, 200, seeded_generator("cpu", 0))
    normal = NormalDist()
    variance = 1 - 4 * normal.pdf(2) / (normal.cdf(2) - normal.cdf(-2))
    assert sample.dtype == torch.float32
    assert 1.99 < float(sample.max()) <= 2.0 and -2.0 <= float(sample.min()) < -1.99
    # Standard errors at 200,000 draws: 0.002 of the mean, 0.0018 of the variance.
    assert abs(float(sample.mean())) < 0.01
    assert float(sample.var()) == pytest.approx(variance, abs=0.01)


def test_truncated_latents_have_the_distribution_function_of_a_cut_normal():
    from scipy.stats import kstest, truncnorm

    sample = draw("truncated_normal", 1, 50_000, seeded_generator("cpu", 1)).numpy().ravel()
    assert kstest(sample, truncnorm(-2, 2).cdf).pvalue > 0.01
    assert kstest(sample, "norm").pvalue < 1e-6


def test_an_unknown_prior_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="expected one of normal, uniform, truncated_normal"):
        draw("triangular", 1, 1, seeded_generator("cpu", 0))


@pytest.mark.parametrize("prior", ["normal", "truncated_normal"])
def test_the_family_draws_its_latents_from_its_prior(prior):
    module = make(prior=prior, latent_dim=2000)
    trained = torch.cat([module.draw_latents(4, "critic"), sample_latents(module.prior, 4, 2000, seed=0)])
    assert (float(trained.abs().max()) <= 2.0) == (prior == "truncated_normal")


@pytest.mark.parametrize("prior", ["normal", "truncated_normal"])
def test_samples_depend_on_seed_and_index_alone(prior):
    module = make(prior=prior, skips="previous_two")
    ten = module.sample(10, seed=3)
    assert ten.shape == (10, 1, 32, 32) and ten.dtype == torch.float32
    torch.testing.assert_close(module.sample(4, seed=3, start=6), ten[6:])
    assert torch.equal(module.sample(10, seed=3), ten)
    assert not torch.equal(module.sample(10, seed=4), ten)


def test_the_average_begins_as_the_generator_it_belongs_to():
    module = make()
    live, average = module.generator.state_dict(), module.generator_ema.state_dict()
    assert live.keys() == average.keys() and all(torch.equal(live[name], average[name]) for name in live)
    (_, optimizer) = module.configure_optimizers()
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.generator.parameters()}


@pytest.mark.parametrize("skips, kernel, norm", [("previous", None, "none"), ("previous_two", 3, "batch")])
def test_exported_generator_makes_the_same_images(tmp_path, skips, kernel, norm):
    module = make(skips=skips, kernel=kernel, norm=norm, prior="truncated_normal", image_size=(40, 32))
    exported = ExportedGenerator(module.generator_ema, module.prior)
    content = weights_of(exported)
    said = {**describe(exported), "format": 1, "files": {"generator.safetensors": sha256(content).hexdigest()}}
    (tmp_path / "generator.safetensors").write_bytes(content)
    (tmp_path / "generator.json").write_text(json.dumps(said))
    assert said["network"]["class"] == "lightning_modules.networks.kidney.Generator"
    np.testing.assert_array_equal(load_generator(tmp_path).sample(16, seed=2), module.sample(16, seed=2))
