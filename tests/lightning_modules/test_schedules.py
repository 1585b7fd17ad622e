import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.schedules import ConstantSchedule, ProgressiveSchedule


def test_points_of_a_constant_schedule():
    schedule = ConstantSchedule((80, 64), batch_size=8, total_images=20)
    points = [schedule.at(clock) for clock in (0, 8, 16, 24)]
    assert [point.batch_index for point in points] == [0, 1, 2, 3]
    assert [point.images_left for point in points] == [20, 12, 4, 0]
    assert all(point.resolution == (80, 64) and point.alpha == 1.0 and point.batch_size == 8 for point in points)


def test_learning_rate_warms_up_and_decays():
    schedule = ConstantSchedule((4, 4), batch_size=10, total_images=1000, warmup_images=100, decay_from_images=500)
    scales = [schedule.at(clock).learning_rate_scale for clock in (0, 40, 90, 100, 500, 750, 1000)]
    assert scales == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    "arguments",
    [
        {"resolution": (0, 4)},
        {"batch_size": 0},
        {"total_images": 4},
        {"warmup_images": -1},
        {"decay_from_images": 100},
        {"decay_from_images": -1},
    ],
)
def test_impossible_schedules_are_refused(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name}="):
        ConstantSchedule(**{"resolution": (4, 4), "batch_size": 8, "total_images": 100, **arguments})


def growing(**changes):
    arguments = {
        "resolution": (40, 32),
        "batch_sizes": (16, 8, 4, 2),
        "fade_images": 100,
        "stable_images": (90, 60, 50, 40),
        "learning_rate_scales": (1.0, 1.0, 1.0, 1.5),
    }
    return ProgressiveSchedule(**{**arguments, **changes})


def points(schedule, world_size=1):
    """Every batch of a run, as the sampler walks through it."""
    clock, found = 0, []
    while clock < schedule.total_images:
        point = schedule.at(clock)
        assert point.batch_size % world_size == 0
        found.append(point)
        clock += point.batch_size
    assert clock == schedule.total_images
    return found


def test_stages_of_a_growing_schedule():
    schedule = growing()
    stages = schedule.stages()
    assert [point.resolution for point in stages] == [(5, 4), (10, 8), (20, 16), (40, 32)]
    assert [point.images_seen for point in stages] == [0, 96, 256, 408]  # rounded up to whole batches
    assert schedule.total_images == 408 + 140
    assert [point.learning_rate_scale for point in stages] == [1.0, 1.0, 1.0, 1.5]
    assert schedule.resolutions() == tuple(point.resolution for point in stages)


def test_segals_schedule_is_the_papers():
    """Section 3.2: 800,000 images while layers are mixed and 800,000 after, up to 1024x1024."""
    schedule = ProgressiveSchedule((1024, 1024), (64,) * 6 + (56, 32, 12), 800_000, 800_000)
    assert [p.resolution[0] for p in schedule.stages()] == [4 << s for s in range(9)]
    assert schedule.stages()[1].stage_start == 800_000
    assert schedule.at(800_000 + 400_000).alpha == 0.5
    assert schedule.at(800_000 + 800_000).alpha == 1.0
    assert schedule.at(800_000 + 800_000).stage == 1


@st.composite
def schedules(draw):
    doublings = draw(st.integers(0, 4))
    world_size = draw(st.sampled_from((1, 2, 3)))
    each = st.integers(1, 9).map(lambda n: n * world_size)
    per_stage = {"min_size": doublings + 1, "max_size": doublings + 1}
    return world_size, ProgressiveSchedule(
        (draw(st.integers(4, 7)) << doublings, 4 << doublings),
        tuple(draw(st.lists(each, **per_stage))),
        (0, *draw(st.lists(st.integers(0, 60), **per_stage))[1:]),
        tuple(draw(st.lists(st.integers(1, 60), **per_stage))),
    )


@settings(deadline=None)
@given(schedules())
def test_growth_is_continuous_monotone_and_whole(drawn):
    world_size, schedule = drawn
    run = points(schedule, world_size)
    assert [point.batch_index for point in run] == list(range(len(run)))
    assert run[0].stage == 0 and run[0].alpha == 1.0
    assert run[-1].resolution == schedule.resolution
    for before, after in itertools.pairwise(run):
        assert after.images_seen == before.images_seen + before.batch_size  # nothing lost, nothing shown twice
        assert after.images_left == before.images_left - before.batch_size
        if after.stage == before.stage:
            assert after.alpha >= before.alpha
            assert (after.batch_size, after.resolution) == (before.batch_size, before.resolution)
        else:
            assert after.stage == before.stage + 1
            assert after.images_seen == after.stage_start
            # Continuous: a stage begins as its predecessor's picture, and ends with its own.
            assert after.alpha == 0.0 or schedule._fades[after.stage] == 0
            assert before.images_seen + before.batch_size - before.stage_start >= schedule._fades[before.stage]
    for clock in range(0, schedule.total_images, 7):  # also between batches, as callbacks ask
        assert 0.0 <= schedule.at(clock).alpha <= 1.0
    end = schedule.at(schedule.total_images)
    assert end.images_left == 0 and end.resolution == schedule.resolution


@pytest.mark.parametrize(
    "arguments",
    [
        {"resolution": (41, 32)},
        {"batch_sizes": (8, 8, 8)},
        {"batch_sizes": 0},
        {"fade_images": -1},
        {"fade_images": (50, 20, 20, 20)},
        {"learning_rate_scales": float("nan")},
        {"stable_images": 0},
        {"learning_rate_scales": 0.0},
    ],
)
def test_impossible_growth_is_refused(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name}="):
        growing(**arguments)
