import pytest

from lightning_modules.schedules import ConstantSchedule


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
