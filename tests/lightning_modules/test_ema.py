import pytest
import torch
from torch import nn

from lightning_modules.ema import ema_decay, ema_update, frozen_copy


def test_update_moves_parameters_and_copies_buffers():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = frozen_copy(network)
    before = average[0].weight.clone()
    with torch.no_grad():
        network[0].weight.add_(1.0)
    network[1].running_mean.fill_(5.0)
    network[1].num_batches_tracked.fill_(7)
    ema_update(average, network, decay=0.75)
    torch.testing.assert_close(average[0].weight, before + 0.25)
    assert average[1].running_mean.tolist() == [5.0, 5.0]
    assert int(average[1].num_batches_tracked) == 7


def test_decay_zero_copies():
    network = nn.Linear(3, 3)
    average = frozen_copy(nn.Linear(3, 3))
    ema_update(average, network, decay=0.0)
    torch.testing.assert_close(average.weight, network.weight)


def test_half_life_does_not_depend_on_the_batch_size():
    one = ema_decay(1000, 10**6, 1000, None)
    many = ema_decay(10, 10**6, 1000, None) ** 100
    assert one == pytest.approx(0.5)
    assert many == pytest.approx(0.5)


def test_ramp_up_forgets_the_beginning():
    assert ema_decay(100, 1000, 10_000, 0.05) == pytest.approx(0.5 ** (100 / 50))
    assert ema_decay(100, 10**6, 10_000, 0.05) == pytest.approx(0.5 ** (100 / 10_000))


def test_frozen_copy_is_not_trained():
    average = frozen_copy(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    assert not average.training
    assert not any(parameter.requires_grad for parameter in average.parameters())
