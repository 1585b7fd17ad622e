import pytest
import torch

from lightning_modules.networks.dcgan import Discriminator, Generator
from lightning_modules.networks.layers import base_grid

SIZES = [(32, 32), (64, 64), (128, 128), (256, 256), (80, 64), (160, 128), (96, 64), (64, 80), (40, 32)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_ranges_and_gradients_at_every_size(size, channels):
    generator = Generator(8, size, channels, 2)
    images = generator(torch.randn(2, 8))
    assert images.shape == (2, channels, *size)
    assert float(images.detach().abs().max()) <= 1.0
    for norm in ("batch", "layer"):
        discriminator = Discriminator(size, channels, 2, norm)
        logits = discriminator(images)
        assert logits.shape == (2,)
        logits.sum().backward(retain_graph=True)
        for network in (generator, discriminator):
            assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_one_to_four_channels(channels):
    images = Generator(8, (32, 32), channels, 2)(torch.randn(2, 8))
    assert Discriminator((32, 32), channels, 2, "layer")(images).shape == (2,)


def test_the_papers_generator_has_the_papers_channels():
    """Figure 1 of Radford 2016: 1024, 512, 256, 128 channels at 4, 8, 16 and 32 pixels."""
    generator = Generator(100, (64, 64), 3, 128)
    convolutions = [layer for layer in generator.upsample if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert [layer.in_channels for layer in convolutions] == [1024, 512, 256, 128]


def test_initial_weights_have_the_papers_deviation():
    discriminator = Discriminator((64, 64), 1, 32, "batch")
    assert float(discriminator.downsample[-3].weight.std()) == pytest.approx(0.02, rel=0.02)


def test_evaluation_is_deterministic():
    generator = Generator(8, (32, 32), 1, 4).eval()
    latents = torch.randn(3, 8)
    assert torch.equal(generator(latents), generator(latents))


@pytest.mark.parametrize(
    "size, grid, doublings",
    [
        ((64, 64), (4, 4), 4),
        ((80, 64), (5, 4), 4),
        ((1280, 1024), (5, 4), 8),
        ((96, 96), (6, 6), 4),
        ((4, 5), (4, 5), 0),
    ],
)
def test_base_grid(size, grid, doublings):
    assert base_grid(size) == (grid, doublings)


@pytest.mark.parametrize("size", [(100, 64), (64, 65), (2, 2), (0, 64), (66, 66)])
def test_sizes_without_a_grid_are_refused_with_the_nearest_one(size):
    with pytest.raises(ValueError, match="nearest is") as error:
        base_grid(size)
    nearest = eval(str(error.value).split("nearest is ")[1])
    base_grid(nearest)


def test_discriminator_says_what_it_got_and_expected():
    with pytest.raises(ValueError, match=r"got images of shape \(2, 1, 32, 32\), expected \(N, 1, 64, 64\)"):
        Discriminator((64, 64), 1, 2, "batch")(torch.zeros(2, 1, 32, 32))
