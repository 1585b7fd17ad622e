import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from lightning_modules.metrics.memorisation import (
    Authenticity,
    Copies,
    Copy,
    MembershipInference,
    NeighbourDistanceRatio,
    authenticity,
    copies,
    copy_threshold,
    membership_inference_auc,
    neighbour_distance_ratio,
)
from lightning_modules.metrics.pixels import Pixels
from lightning_modules.metrics.score import TooFewImagesError

INSTRUMENTS = (NeighbourDistanceRatio, Authenticity, Copies, MembershipInference)


def normal(*counts, d=16, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=random) for n in counts]


def distances_by_sklearn(queries, points, neighbour=1):
    return NearestNeighbors(n_neighbors=neighbour).fit(points).kneighbors(queries)[0][:, -1]


def test_all_equal_their_definitions_with_scikit_learns_neighbours():
    train, held_out, generated = normal(300, 200, 150)
    to_train, held_to_train = distances_by_sklearn(generated, train), distances_by_sklearn(held_out, train)
    ratio = neighbour_distance_ratio(train, held_out, generated)
    assert ratio == pytest.approx(np.quantile(to_train, 0.5) / np.quantile(held_to_train, 0.5), rel=0.01)
    nearest = NearestNeighbors(n_neighbors=1).fit(train).kneighbors(generated)[1][:, 0]
    expected = (to_train > distances_by_sklearn(train, train, 2)[nearest]).mean()
    assert authenticity(train, generated) == pytest.approx(expected)
    assert 0.0 < expected < 1.0
    to_generated = np.concatenate([distances_by_sklearn(x, generated) for x in (train, held_out)])
    expected = roc_auc_score([1] * 300 + [0] * 200, -to_generated)
    assert membership_inference_auc(train, held_out, generated) == pytest.approx(expected, abs=1e-6)
    assert copy_threshold(train, held_out) == pytest.approx(np.sort(held_to_train)[1], rel=1e-6)  # 201 * 1 % = 2


def test_new_images_are_as_new_as_patients():
    train, held_out, generated = normal(1000, 800, 800)
    assert neighbour_distance_ratio(train, held_out, generated) == pytest.approx(1.0, abs=0.02)
    assert membership_inference_auc(train, held_out, generated) == pytest.approx(0.5, abs=0.05)
    assert authenticity(train, generated) == pytest.approx(authenticity(train, held_out), abs=0.05)


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.05])
def test_planted_copies_are_named(noise):
    """A fifth of the images are copies, with a little noise: all are named with their originals, and hardly others."""
    train, held_out, new, jitter = normal(600, 400, 400, 100)
    order = torch.from_numpy(np.random.default_rng(0).permutation(600))[:100]
    generated = torch.cat([train[order] + noise * jitter, new])
    found = copies(train, held_out, generated)
    named = {copy.generated: copy.train for copy in found}
    assert {i: int(order[i]) for i in range(100)}.items() <= named.items()
    assert len(found) - 100 <= 12  # 4 expected of 400
    assert [copy.distance for copy in found] == sorted(copy.distance for copy in found)
    assert all(copy.distance < copy.threshold == copy_threshold(train, held_out) for copy in found)
    share = Copies().measure(train, held_out, generated)["copied_share"]
    assert share == len(found) / 500
    assert authenticity(train, generated) < authenticity(train, held_out) - 0.1
    assert membership_inference_auc(train, held_out, generated) > 0.55


def test_a_generator_that_only_copies():
    train, held_out = normal(300, 200)
    assert neighbour_distance_ratio(train, held_out, train) == 0.0
    assert authenticity(train, train) == 0.0
    assert membership_inference_auc(train, held_out, train) == 1.0
    assert copies(train, held_out, train[:3])[0] == Copy(0, 0, 0.0, copy_threshold(train, held_out))
    assert len(copies(train, held_out, train)) == 300


@pytest.mark.parametrize("count, false_alarms, bound", [(199, 0.01, 0.01), (49, 0.01, 0.02), (99, 0.1, 0.1)])
def test_false_alarms_on_other_patients_are_bounded(count, false_alarms, bound):
    shares = []
    for seed in range(60):
        train, held_out, others = normal(150, count, 200, d=6, seed=seed)
        shares.append(len(copies(train, held_out, others, false_alarms)) / 200)
    standard_error = np.std(shares) / 60**0.5
    assert abs(np.mean(shares) - bound) < 3 * standard_error
    assert np.mean(shares) > 0


def test_splits_that_share_images_are_refused():
    train, held_out, generated = normal(50, 50, 50)
    held_out[:2] = train[:2]
    with pytest.raises(ValueError, match="2 of 50 held-out images equal training images"):
        copies(train, held_out, generated)
    assert neighbour_distance_ratio(train, held_out, generated) > 0.8
    with pytest.raises(ValueError, match="more than half of the held-out"):
        neighbour_distance_ratio(train, train, generated)


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_instruments_take_unequal_sets_and_refuse_single_images(instrument):
    train, held_out, generated = normal(90, 60, 30)
    (value,) = instrument().measure(train, held_out, generated).values()
    assert type(value) is float and np.isfinite(value)
    for sets in ((train[:1], held_out, generated), (train, held_out[:1], generated), (train, held_out, generated[:1])):
        with pytest.raises(TooFewImagesError, match=f"{instrument.__name__} needs at least 2"):
            instrument().measure(*sets)
    with pytest.raises(ValueError, match="one D"):
        instrument().measure(train, held_out, generated[:, :3])


def test_false_alarms_set_what_is_enough():
    assert Copies().enough(240) == 99 and Copies(false_alarms=0.05).enough(240) == 19
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"false_alarms={share}"):
            Copies(false_alarms=share)


@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 80, 48), (3, 20, 16), (2, 33, 47), (1, 256, 4)])
def test_pixels_have_the_root_mean_square_as_distance(shape):
    random = torch.Generator().manual_seed(0)
    low = torch.rand(2, *shape, generator=random) - 0.5
    vectors = Pixels()(torch.cat([low, low + 0.25]))
    scale = min(1, 32 / max(shape[1:]))
    assert vectors.shape == (4, shape[0] * max(1, round(shape[1] * scale)) * max(1, round(shape[2] * scale)))
    torch.testing.assert_close((vectors[2:] - vectors[:2]).norm(dim=1), torch.full((2,), 0.25))


def test_pixels_are_means_of_areas_and_small_images_stay():
    images = torch.rand(2, 1, 64, 64) * 2 - 1
    expected = torch.nn.functional.avg_pool2d(images, 2).flatten(1) / 32
    torch.testing.assert_close(Pixels()(images), expected)
    small = images[..., :10, :20]
    torch.testing.assert_close(Pixels()(small) * 200**0.5, small.flatten(1))
    assert Pixels()(images).shape == (2, Pixels.dimensions)
    assert "32" in Pixels().identity()["preprocessing"]
