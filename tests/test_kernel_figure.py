"""The kernel's figure: what is drawn is what the generator computes, with its kernel and without."""

import io

import numpy as np
import pytest
import torch

from experiments.figures.kernel import kernel_change, kernel_figure
from lightning_modules.networks.kidney import Generator

pytestmark = pytest.mark.usefixtures("drawn")


def generator(kernel=3, size=(32, 32), seed=0, channels=1, norm="none"):
    torch.manual_seed(seed)
    return Generator(8, size, channels, 4, "previous_two", kernel, norm)


def with_kernel(values):
    network = generator(kernel=len(values))
    network.kernel.data = torch.tensor(values)[None, None]
    return network


def latents(count=2):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(1))


def shown(axes):
    return np.asarray(axes.images[0].get_array())


def parts(figure):
    """The axes of the kernel, and those of the rows (k, 4), of both halves."""
    return [
        (top.axes[0], np.array(below.axes, dtype=object).reshape(-1, 4))
        for top, below in (half.subfigs for half in figure.subfigs)
    ]


def test_change_is_relative_to_the_first_kernel():
    start = with_kernel([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    trained = with_kernel([[0.0, 0.0, 3.0], [0.0, 2.0, 0.0], [4.0, 0.0, 0.0]])
    assert kernel_change(start, trained) == pytest.approx(2.5)
    assert kernel_change(start, start) == 0.0
    assert kernel_change(with_kernel([[0.0]]), with_kernel([[1.0]])) == float("inf")


@pytest.mark.parametrize("size", [(32, 32), (80, 64)])
def test_the_figure_shows_what_the_generators_compute(size):
    start, trained = generator(size=size), generator(size=size, seed=1)
    figure = kernel_figure(start, trained, latents())
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    for network, (kernel, rows) in zip((start, trained), parts(figure), strict=True):
        np.testing.assert_allclose(shown(kernel), network.kernel.detach()[0, 0], rtol=1e-6)
        assert {text.get_text() for text in kernel.texts} == {f"{v:.2f}" for v in network.kernel.flatten().tolist()}
        with torch.no_grad():
            before, after, images = network.project(latents()), network.first_layer(latents()), network(latents())
        bare = generator(kernel=None, size=size)
        bare.load_state_dict({name: w for name, w in network.state_dict().items() if name != "kernel"})
        expected = (before, after, images, bare(latents()).detach())
        for k in range(2):
            for axes, maps in zip(rows[k], expected, strict=True):
                np.testing.assert_allclose(shown(axes), maps[k, 0], atol=1e-6)


def test_halves_have_one_scale():
    start, trained = generator(), generator(seed=1)
    with torch.no_grad():
        trained.kernel *= 10.0
    (first, rows), (second, more) = parts(kernel_figure(start, trained, latents()))
    most = float(trained.kernel.detach().abs().max())
    assert first.images[0].get_clim() == second.images[0].get_clim() == pytest.approx((-most, most))
    for column in range(4):
        assert rows[0, column].images[0].get_clim() == more[1, column].images[0].get_clim()
    assert more[0, 1].images[0].get_clim()[1] == pytest.approx(
        float(trained.first_layer(latents()).detach().abs().max())
    )


def test_a_kernel_of_one_changes_nothing():
    identity = with_kernel([[1.0]])
    for _, rows in parts(kernel_figure(identity, identity, latents())):
        np.testing.assert_array_equal(shown(rows[0, 0]), shown(rows[0, 1]))
        np.testing.assert_array_equal(shown(rows[1, 2]), shown(rows[1, 3]))


def test_networks_stay_as_they_are():
    network = generator(norm="batch")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    kernel_figure(network, network, latents())
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_from_first_layer_is_the_rest_of_the_network():
    network = generator().eval()
    torch.testing.assert_close(network.from_first_layer(network.first_layer(latents())), network(latents()))


def test_what_has_no_kernel_to_show_is_refused():
    with pytest.raises(ValueError, match="no kernel: it was built with kernel=null"):
        kernel_figure(generator(), generator(kernel=None), latents())
    with pytest.raises(ValueError, match="different sides: 3 and 5"):
        kernel_change(generator(), generator(kernel=5))
    with pytest.raises(ValueError, match="images of 3 channels"):
        kernel_figure(generator(channels=3), generator(channels=3), latents())
    with pytest.raises(ValueError, match="no latents"):
        kernel_figure(generator(), generator(), latents(0))
