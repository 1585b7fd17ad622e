import numpy as np
import pytest

from datamodules.batches.transforms import resize
from datamodules.phantoms import KINDS, Phantoms
from lightning_modules.schedules import ConstantSchedule

ALL = sorted(KINDS)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("size", [(16, 16), (64, 64), (80, 64), (33, 47)])
def test_drawings_are_deterministic_and_in_range(kind, size):
    for index in range(6):
        image = KINDS[kind].draw(index, *size)
        assert image.shape == size and image.dtype == np.float32
        assert image.min() >= 0 and image.max() <= 1 and image.std() > 0.05
        np.testing.assert_array_equal(image, KINDS[kind].draw(index, *size))


@pytest.mark.parametrize("kind", ALL)
def test_an_image_is_the_same_at_two_resolutions(kind):
    for index in range(8):
        large = resize(KINDS[kind].draw(index, 256, 256)[None], 64, 64)[0]
        assert np.corrcoef(large.ravel(), KINDS[kind].draw(index, 64, 64).ravel())[0, 1] > 0.97


@pytest.mark.parametrize("kind", ALL)
def test_patients_differ_and_share_their_anatomy(kind):
    images = [KINDS[kind].draw(index, 64, 64) for index in range(0, 80, 4)]
    assert len({image.tobytes() for image in images}) == len(images)
    if kind != "mammogram":
        same = np.corrcoef(KINDS[kind].draw(0, 64, 64).ravel(), KINDS[kind].draw(1, 64, 64).ravel())[0, 1]
        other = np.corrcoef(KINDS[kind].draw(0, 64, 64).ravel(), KINDS[kind].draw(2, 64, 64).ravel())[0, 1]
        assert same > other
    assert KINDS[kind].describe(0).group == KINDS[kind].describe(1).group
    assert KINDS[kind].describe(0).group != KINDS[kind].describe(4).group


def test_kidney_classes_come_in_the_real_sets_proportions():
    classes = [KINDS["kidney_ct"].describe(index).classes for index in range(1000)]
    shares = {name: classes.count((name,)) / 1000 for name in ("Cyst", "Normal", "Stone", "Tumor")}
    assert shares == pytest.approx({"Cyst": 0.30, "Normal": 0.41, "Stone": 0.11, "Tumor": 0.18}, abs=0.02)


def test_kidney_classes_look_different():
    """A stone is the brightest thing in its slice: the drawing follows the label."""
    stones = [i for i in range(0, 400, 2) if KINDS["kidney_ct"].describe(i).classes == ("Stone",)]
    assert len(stones) > 10
    assert np.mean([KINDS["kidney_ct"].draw(i, 128, 128).max() for i in stones]) > 0.9


def test_a_patient_has_four_views_and_lesions_on_one_side():
    views = [KINDS["mammogram"].describe(index) for index in range(4)]
    assert {(v.view, v.laterality) for v in views} == {("CC", "L"), ("CC", "R"), ("MLO", "L"), ("MLO", "R")}
    for patient in range(50):
        by_side = {
            side: {KINDS["mammogram"].describe(4 * patient + i).classes for i in (side, side + 2)} for side in (0, 1)
        }
        assert all(len(classes) == 1 for classes in by_side.values())
        assert () in by_side[0] | by_side[1]


def test_left_breast_hangs_on_the_left_border_and_background_is_zero():
    left, right = KINDS["mammogram"].draw(0, 80, 64), KINDS["mammogram"].draw(1, 80, 64)
    assert left[:, 0].mean() > 0.05 and left[:, -1].max() == 0
    assert right[:, -1].mean() > 0.05 and right[:, 0].max() == 0


def phantoms(tmp_path, **arguments):
    return Phantoms(
        ConstantSchedule((32, 32), 8, 80), 0, str(tmp_path), **{"kind": "mammogram", "count": 40, **arguments}
    )


@pytest.mark.parametrize("view", ["CC", "MLO"])
def test_view_is_chosen(tmp_path, view):
    data = phantoms(tmp_path, view=view)
    indices = [int(record.name.rsplit("-", 1)[1]) for record in data.records()]
    assert len(indices) == 40
    assert {KINDS["mammogram"].describe(i).view for i in indices} == {view}


def test_tiny_images_are_drawn_larger_and_averaged(tmp_path):
    data = Phantoms(ConstantSchedule((4, 4), 8, 80), 0, str(tmp_path), kind="kidney_ct", count=4)
    assert data.read(data.records()[0]).shape == (1, 4, 4)


@pytest.mark.parametrize("kind", ALL)
def test_a_patient_has_as_many_films_as_wished(tmp_path, kind):
    usual = KINDS[kind].FILMS
    plain, same, more = (phantoms(tmp_path, kind=kind, films_per_patient=films) for films in (None, usual, 2 * usual))
    assert plain.read_settings() == same.read_settings() != more.read_settings()
    assert plain.records() == same.records()
    for one, other in zip(plain.records()[:8], same.records()[:8], strict=True):
        np.testing.assert_array_equal(plain.read(one), same.read(other))
    groups = [record.group for record in more.records()]
    assert set(map(groups.count, groups)) == {2 * usual}
    films = [more.read(record) for record in more.records()[: 4 * usual : usual]]  # two films of two patients
    alike = np.corrcoef([film.ravel() for film in films])
    assert not np.array_equal(films[0], films[1])
    assert kind == "mammogram" or alike[0, 1] > max(alike[0, 2], alike[0, 3])  # whose texture is each image's own


@pytest.mark.parametrize("kind", ALL)
def test_films_of_a_patient_are_refused_where_there_are_none(tmp_path, kind):
    with pytest.raises(ValueError, match=r"^films_per_patient=0: must be"):
        phantoms(tmp_path, kind=kind, films_per_patient=0)


@pytest.mark.parametrize("arguments", [{"count": 1}, {"kind": "chest_xray", "view": "CC"}])
def test_impossible_phantoms_are_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match=r"^(count|view)="):
        phantoms(tmp_path, **arguments)
