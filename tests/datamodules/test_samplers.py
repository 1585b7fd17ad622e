"""The order of images: a pure function of seed, clock, world size and rank."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.batches.samplers import ScheduleBatchSampler, pass_order
from lightning_modules.schedules import ConstantSchedule


def sampler(size, batch, clock=0, seed=0, rank=0, world=1):
    return ScheduleBatchSampler(size, ConstantSchedule((8, 8), batch, 10**9), seed, rank, world, lambda: clock)


def order(size, batch, batches, **where):
    return np.concatenate([request.indices for request in islice(sampler(size, batch, **where), batches)])


def test_every_image_is_shown_once_per_pass():
    shown = order(size=10, batch=4, batches=10)
    for start in range(0, 40, 10):
        assert sorted(shown[start : start + 10]) == list(range(10))


def test_passes_are_in_different_orders_and_seeds_differ():
    shown = order(size=50, batch=10, batches=10)
    assert shown[:50].tolist() != shown[50:].tolist()
    assert order(50, 10, 5, seed=1).tolist() != shown[:50].tolist()


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 40), batch=st.integers(1, 24), batches=st.integers(1, 8), skipped=st.integers(0, 12))
def test_starting_later_continues_the_same_stream(size, batch, batches, skipped):
    whole = order(size, batch, skipped + batches)
    assert order(size, batch, batches, clock=skipped * batch).tolist() == whole[skipped * batch :].tolist()


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 40), world=st.integers(1, 4), share=st.integers(1, 6), batches=st.integers(1, 6))
def test_processes_share_a_batch_without_loss_or_repeat(size, world, share, batches):
    alone = [request.indices for request in islice(sampler(size, world * share), batches)]
    shared = [
        [request.indices for request in islice(sampler(size, world * share, rank=rank, world=world), batches)]
        for rank in range(world)
    ]
    for k in range(batches):
        assert all(len(shared[rank][k]) == share for rank in range(world))
        merged = np.stack([shared[rank][k] for rank in range(world)], axis=1).flatten()
        assert merged.tolist() == alone[k].tolist()


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 40), world=st.integers(1, 3), share=st.integers(1, 6), clock=st.integers(0, 9))
def test_two_batches_at_once_are_two_of_the_stream(size, world, share, clock):
    """Nothing is lost or shown twice, and each half of a process's share belongs to one of the two batches."""
    batch = world * share
    stream = order(size, batch, 2 * (clock + 1))[2 * clock * batch :]
    schedule = ConstantSchedule((8, 8), batch, 10**9)
    for rank in range(world):
        two = ScheduleBatchSampler(size, schedule, 0, rank, world, lambda: 0, times=2).request(clock * batch)
        first, second = two.indices[:share], two.indices[share:]
        assert first.tolist() == stream[:batch][rank::world].tolist()
        assert second.tolist() == stream[batch:][rank::world].tolist()


def test_requests_carry_clock_and_resolution():
    requests = list(islice(sampler(10, 4, clock=8), 3))
    assert [request.images_seen for request in requests] == [8, 12, 16]
    assert requests[0].resolution == (8, 8)


def test_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="a batch of 5 images cannot be shared by 2 processes"):
        next(iter(sampler(10, 5, world=2)))


def test_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="no image"):
        sampler(0, 4)


def test_pass_order_is_a_permutation():
    assert sorted(pass_order(100, 3, 7)) == list(range(100))
