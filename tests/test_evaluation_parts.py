"""Sets of images, their vectors, halves of them, and what scores are made of."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from conftest import write_kidney
from dicom_files import write_mammogram
from PIL import Image

from datamodules.ct_kidney import CTKidney
from datamodules.files.errors import DataError, UnreadableImageError
from datamodules.writing.writers import write_png16
from experiments.configuration.errors import ConfigError
from experiments.measuring.image_sets import FolderImages, ImageSet, RealImages, choose
from experiments.measuring.resampling import halves, interval, together
from experiments.measuring.scoring import Scorer, Sets
from experiments.measuring.vectors import VectorCache
from lightning_modules.metrics.features import FeatureExtractor
from lightning_modules.metrics.score import DistributionScore, MemorisationScore
from lightning_modules.schedules import ConstantSchedule


class Mean(FeatureExtractor):
    """One number per image, and a count of the images that were looked at."""

    score_name, dimensions = "mean", 1

    def __init__(self):
        super().__init__()
        self.seen = 0

    def identity(self):
        return {"extractor": "mean"}

    def features(self, images):
        self.seen += len(images)
        return images.mean(dim=(1, 2, 3))[:, None]


class Shift(DistributionScore):
    better, at_least = "as real", 4

    def __init__(self, reads=None):
        self.reads = reads

    def measure(self, real, generated):
        self.check(real, generated)
        return {"shift": float(generated.mean() - real.mean())}


class Nearest(MemorisationScore):
    better, at_least = "higher", 4

    def measure(self, train, held_out, generated):
        self.check(train, held_out, generated)
        return {"nearest": float(torch.cdist(generated, train).min(dim=1).values.mean())}


class Numbers(ImageSet):
    """Images of one grey each, of so many groups."""

    def __init__(self, values, groups=None):
        self.values = torch.as_tensor(values, dtype=torch.float32)
        self.names = [str(i) for i in range(len(self.values))]
        self.groups = self.names if groups is None else [str(group) for group in groups]
        self.size, self.what = (2, 2), "numbers"

    def identity(self):
        return {"numbers": self.values.tolist()}

    def read(self, start, stop):
        return self.values[start:stop, None, None, None].expand(-1, 1, 2, 2).clone()


def normal(n, seed, mean=0.0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).mul(0.1).add(mean).clamp(-1, 1)


def scorer(tmp_path, sets, replicates=60):
    return Scorer(sets, VectorCache(tmp_path), {"mean": Mean()}, replicates, 0, tmp_path / "record.jsonl")


# Halves ---------------------------------------------------------------------------------------------------------------


def test_halves_share_no_group_and_no_image_is_lost():
    groups = [f"p{i // 3}" for i in range(300)]
    split = halves(groups, seed=1, replicate=4)
    assert sorted([*split.first, *split.second]) == list(range(300))
    assert not {groups[i] for i in split.first} & {groups[i] for i in split.second}
    assert abs(len(split.first) - len(split.second)) <= 3


def test_halves_of_unequal_groups_differ_by_less_than_the_largest():
    groups = np.repeat(np.arange(40), np.arange(40) % 7 + 1).astype(str)
    for k in range(50):
        split = halves(groups, 0, k)
        assert abs(len(split.first) - len(split.second)) <= 7


def test_halves_are_a_function_of_seed_and_replicate():
    groups = [str(i) for i in range(50)]
    assert np.array_equal(halves(groups, 3, 5).first, halves(groups, 3, 5).first)
    assert not np.array_equal(halves(groups, 3, 5).first, halves(groups, 3, 6).first)
    assert not np.array_equal(halves(groups, 3, 5).first, halves(groups, 4, 5).first)


def test_interval_of_a_mean_of_patients_covers_the_truth():
    """Five images of each patient that are nearly alike: by image the interval would be half as wide."""
    random = np.random.default_rng(0)
    by_group = by_image = 0
    for trial in range(200):
        patients = random.normal(size=40)
        values = np.repeat(patients, 5) + 0.1 * random.normal(size=200)
        groups, each = np.repeat(np.arange(40), 5).astype(str), np.arange(200).astype(str)
        for kind in (groups, each):
            low, high = interval(values.mean(), [values[halves(kind, trial, k).first].mean() for k in range(60)], 39)
            if kind is groups:
                by_group += low <= 0 <= high
            else:
                by_image += low <= 0 <= high
    assert 0.88 * 200 <= by_group <= 0.99 * 200
    assert by_image < 0.75 * 200


def test_choosing_mixes_the_order():
    chosen = choose(100, 50, seed=0)
    assert len(set(chosen)) == 50 and min(chosen) >= 0 and max(chosen) < 100
    assert chosen == choose(100, None, seed=0)[:50] != choose(100, 50, seed=1)
    assert sum(abs(a - b) == 1 for a, b in itertools.pairwise(chosen)) < 5


def test_the_first_rows_of_a_half_are_a_random_part_of_it():
    firsts = [halves([str(i) for i in range(200)], 0, k).first[:20].mean() for k in range(50)]
    assert 80 < np.mean(firsts) < 120


# Vectors --------------------------------------------------------------------------------------------------------------


def test_vectors_are_computed_once_and_only_where_they_are_missing(tmp_path):
    images, mean, cache = Numbers(normal(1201, 0)), Mean(), VectorCache(tmp_path)
    first = cache.vectors(images, mean)
    assert mean.seen == 1201 and torch.allclose(first[:, 0], images.values)
    damaged = sorted(tmp_path.rglob("*.npy"))[1]
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert torch.equal(cache.vectors(images, mean), first)
    assert mean.seen == 1701
    assert oct(next(tmp_path.iterdir()).stat().st_mode)[-3:] == "700"


def test_only_as_many_vectors_are_computed_as_are_wanted(tmp_path):
    images, mean = Numbers(normal(2000, 0)), Mean()
    assert len(VectorCache(tmp_path).vectors(images, mean, at_most=300)) == 300
    assert mean.seen == 500  # a shard


def test_no_image_is_shown_to_an_extractor_alone(tmp_path):
    class AtLeastTwo(Mean):
        def features(self, images):
            assert len(images) > 1
            return super().features(images)

    for count in (51, 501, 1001, 1051):
        assert len(VectorCache(tmp_path).vectors(Numbers(normal(count, count)), AtLeastTwo())) == count


def test_vectors_of_other_images_are_others(tmp_path):
    cache = VectorCache(tmp_path)
    a, b = (cache.vectors(Numbers(normal(20, seed)), Mean()) for seed in (0, 1))
    assert not torch.equal(a, b)


# Scores ---------------------------------------------------------------------------------------------------------------


def sets(shift=0.0, n=200, held_out=60):
    return Sets(
        Numbers(normal(n, 0), np.arange(n) // 2),
        Numbers(normal(n, 1, shift)),
        Numbers(normal(400, 2)),
        Numbers(normal(held_out, 3)) if held_out else None,
    )


def test_a_score_comes_with_interval_floor_and_verdict(tmp_path):
    (row,) = scorer(tmp_path, sets()).measure({"shift": Shift()})
    assert row["name"] == "shift_mean" and row["low"] < row["value"] < row["high"]
    assert row["verdict"] == "within the floor"
    # Standard error of a difference of two means of 200; the floor is one of two means of 100.
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * 0.1 * (2 / 200) ** 0.5, rel=0.35)
    assert row["floor_high"] - row["floor_low"] == pytest.approx(2 * 1.96 * 0.1 * (2 / 100) ** 0.5, rel=0.35)


def test_a_shift_is_outside_the_floor(tmp_path):
    (row,) = scorer(tmp_path, sets(shift=0.1)).measure({"shift": Shift()})
    assert row["verdict"] == "outside the floor"


def test_fewer_generated_images_meet_a_floor_of_their_size(tmp_path):
    few = sets()
    few = Sets(few.real, Numbers(normal(50, 1)), few.train, few.held_out)
    (row,) = scorer(tmp_path, few).measure({"shift": Shift()})
    assert row["floor_high"] - row["floor_low"] == pytest.approx(2 * 1.96 * 0.1 * (1 / 25 + 1 / 100) ** 0.5, rel=0.35)
    assert row["fingerprint"]["generated"] == 50


def test_copies_of_training_images_are_nearer_than_held_out_ones(tmp_path):
    clean = sets()
    copied = Sets(clean.real, Numbers(clean.train.values[:200]), clean.train, clean.held_out)
    (row,) = scorer(tmp_path, copied).measure({"nearest": Nearest()})
    assert row["value"] == 0.0 and row["verdict"] == "worse than the floor"
    (row,) = scorer(tmp_path, clean).measure({"nearest": Nearest()})
    assert row["verdict"] != "worse than the floor"


def test_without_held_out_images_memorisation_is_not_measured(tmp_path):
    (row,) = scorer(tmp_path, sets(held_out=0)).measure({"nearest": Nearest()})
    assert row["value"] is None and "held-out" in row["refused"]


def test_too_few_images_are_refused_and_few_are_warned_about(tmp_path):
    (row,) = scorer(tmp_path, sets(n=3)).measure({"shift": Shift()})
    assert row["value"] is None and "at least 4 images" in row["refused"]
    (row,) = scorer(tmp_path, sets(n=6)).measure({"shift": Shift()})
    assert row["value"] is not None and "low" not in row and "3 groups" in row["warnings"][0]


def test_a_half_that_cannot_be_measured_costs_the_interval_not_the_value(tmp_path):
    uneven = sets(n=12)
    uneven = Sets(
        Numbers(normal(12, 0), [0, 0, 0, 0, 0, *range(1, 8)]), *[uneven.generated, uneven.train, uneven.held_out]
    )

    class Seven(Shift):
        at_least = 7

    (row,) = scorer(tmp_path, uneven).measure({"shift": Seven()})
    assert row["value"] is not None and "low" not in row
    assert row["warnings"] == ["no interval and no floor: Seven needs at least 7 images of each set, got 6"]


def test_a_share_of_nothing_is_not_certain(tmp_path):
    class Nothing(Shift):
        bounds = (0.0, 1.0)

        def measure(self, real, generated):
            return {"share": 0.0}

    (row,) = scorer(tmp_path, sets()).measure({"share": Nothing()})
    assert row["low"] == 0.0 and row["high"] == pytest.approx(3 / 200)


def test_patients_that_become_known_change_the_fingerprint(tmp_path):
    a = sets()
    b = Sets(Numbers(a.real.values, np.arange(200) // 10), a.generated, a.train, a.held_out)
    (one,), (other,) = (scorer(tmp_path, of).measure({"shift": Shift()}) for of in (a, b))
    assert one["value"] == other["value"] and one["fingerprint"] != other["fingerprint"]


def test_what_one_extractor_refuses_is_a_row(tmp_path):
    class Refuses(Mean):
        def identity(self):
            return {"extractor": "refuses"}

        def features(self, images):
            raise ValueError("needs larger images")

    rows = scorer(tmp_path, sets()).measure({"a": Shift(reads=Refuses()), "b": Shift()})
    assert rows[0]["value"] is None and rows[0]["refused"] == "needs larger images"
    assert rows[1]["value"] is not None


def test_equal_names_are_told_apart(tmp_path):
    names = [row["name"] for row in scorer(tmp_path, sets()).measure({"a": Shift(), "b": Shift()})]
    assert names == ["shift_mean_a", "shift_mean_b"]


class OfPairs(Shift):
    """Keeps what it is given; image i has the value i / 1000, and its pair that of the even one."""

    unit = "pair"

    def __init__(self):
        super().__init__()
        self.given = []

    def measure(self, real, generated):
        found = super().measure(real, generated)
        self.given.append([set((1000 * rows[:, 0]).round().int().tolist()) for rows in (real, generated)])
        return found


def test_halves_of_pairs_share_neither_images_nor_patients(tmp_path):
    patients = np.random.default_rng(0).permutation(np.arange(201) // 3)
    numbers = Numbers(np.arange(201) / 1000, patients)
    of_pairs = OfPairs()
    one = scorer(tmp_path, Sets(numbers, Numbers(np.arange(201) / 1000), None, None), replicates=20)
    (row,) = one.measure({"pairs": of_pairs})
    (whole, generated), *halved = of_pairs.given
    assert generated == set(range(0, 200, 2)) and len(whole) >= 16
    taken = [patients[i + j] for i in whole for j in (0, 1)]
    assert all(i % 2 == 0 for i in whole) and len(set(taken)) == 2 * len(whole)  # no patient twice
    floors = [(a, b) for a, b in halved if a | b <= whole and not a & b]
    assert len(floors) >= 20 and row["freedom"] == min(20, len(whole)) - 1
    kept = torch.arange(201) != 3
    one.values({"pairs": of_pairs}, kept)
    assert of_pairs.given[-1][1] == set(range(0, 200, 2)) - {2}


def test_generated_images_of_one_patient_are_drawn_together(tmp_path):
    """Translations of slices of one patient vary together: of 20 patients with 10 equal slices each there are 20."""
    generated = Numbers(normal(20, 1).repeat_interleave(10), np.arange(200) // 10)
    (row,) = scorer(tmp_path, Sets(Numbers(normal(200, 0)), generated, None, None)).measure({"shift": Shift()})
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * 0.1 * (1 / 200 + 1 / 20) ** 0.5, rel=0.35)


def test_generated_pairs_share_no_patient(tmp_path):
    generated = Numbers(np.arange(60) / 1000, np.arange(60) // 3)  # (2, 3), (8, 9) ... are of two patients
    of_pairs = OfPairs()
    one = scorer(tmp_path, Sets(Numbers(np.arange(60) / 1000), generated, None, None), replicates=10)
    one.measure({"pairs": of_pairs})
    assert of_pairs.given[0][1] == set(range(2, 60, 6))
    one.values({"pairs": of_pairs}, torch.arange(60) != 9)
    assert of_pairs.given[-1][1] == set(range(2, 60, 6)) - {8}


def test_halves_do_not_depend_on_what_groups_are_called():
    assert together(["b", "a", "b", "c", "a"]) == ["0", "1", "0", "3", "1"]
    assert together([f"generated {i}" for i in range(12)]) == [str(i) for i in range(12)]


def test_few_pairs_are_said_to_be_pairs(tmp_path):
    few = Numbers(np.arange(40) / 1000, np.arange(40) % 10)
    (row,) = scorer(tmp_path, Sets(few, few, None, None)).measure({"pairs": OfPairs()})
    assert "low" not in row and "5 pairs of real images of different groups are too few" in row["warnings"][-1]
    (row,) = scorer(tmp_path, Sets(few, Numbers([0.1, 0.2, 0.3]), None, None)).measure({"pairs": OfPairs()})
    assert row["value"] is None and row["refused"] == "OfPairs needs at least 4 pairs of each set, got 1"


def test_few_patients_make_no_interval(tmp_path):
    few = sets()
    few = Sets(Numbers(normal(200, 0), np.arange(200) // 40), few.generated, few.train, few.held_out)
    (row,) = scorer(tmp_path, few).measure({"shift": Shift()})
    assert "low" not in row and "5 groups" in row["warnings"][0]


def test_finished_scores_are_not_measured_again(tmp_path):
    rows = scorer(tmp_path, sets()).measure({"shift": Shift()})

    class Never(Shift):
        def measure(self, real, generated):
            raise AssertionError

    Never.__name__ = "Shift"
    with (tmp_path / "record.jsonl").open("a") as record:
        record.write('{"key": "cut off by a k')
    assert scorer(tmp_path, sets()).measure({"shift": Never()}) == rows


def test_each_set_is_read_once_for_all_instruments(tmp_path):
    reader = Mean()
    one = scorer(tmp_path, sets())
    one.extractors = {"mean": reader}
    one.measure({"shift": Shift(), "again": Shift(reads=reader), "nearest": Nearest()})
    assert reader.seen == 200 + 200 + 400 + 60


def test_fingerprints_differ_with_anything_that_matters(tmp_path):
    (a,) = scorer(tmp_path, sets()).measure({"shift": Shift()})
    (b,) = scorer(tmp_path, sets(shift=0.5)).measure({"shift": Shift()})
    assert a["fingerprint"] == b["fingerprint"]  # another generator, measured in the same way
    (c,) = scorer(tmp_path, sets(n=100)).measure({"shift": Shift()})
    assert c["fingerprint"] != a["fingerprint"]


# Folders and data sets ------------------------------------------------------------------------------------------------


def test_folder_of_8_and_16_bit_files_keeps_its_range(tmp_path):
    (tmp_path / "sub").mkdir()
    Image.fromarray(np.array([[0, 255], [51, 102]], np.uint8)).save(tmp_path / "a.png")
    write_png16(torch.tensor([[-1.0, 1.0], [-0.6, -0.2]]), tmp_path / "sub" / "b.png")
    images = FolderImages(tmp_path, seed=0)
    values = images.read(0, 2)
    assert torch.allclose(values[0], values[1], atol=1e-6)
    assert torch.allclose(values[0, 0], torch.tensor([[-1.0, 1.0], [-0.6, -0.2]]), atol=1e-6)
    beside = FolderImages(tmp_path / "sub" / ".." / "sub", seed=0)
    assert torch.equal(beside.read(0, 1)[0], values[images.names.index("sub/b.png")])


@pytest.mark.parametrize(("role", "key"), [("real", "value_range"), ("generated", "generated_value_range")])
def test_range_of_16_bit_files_is_declared_or_refused(tmp_path, role, key):
    Image.fromarray(np.array([[0, 4095], [819, 1638]], np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(
        DataError, match=rf"a.png: has 16 bits with values 0 .. 4095.* set {key}, e.g. {key}=\[0,4095\]"
    ):
        FolderImages(tmp_path, 0, role=role).read(0, 1)
    declared = FolderImages(tmp_path, 0, value_range=(0, 4095), role=role).read(0, 1)
    assert torch.allclose(declared[0, 0], torch.tensor([[-1.0, 1.0], [-0.6, -0.2]]), atol=1e-6)
    with pytest.raises(UnreadableImageError, match=rf"a.png: values 0 .. 4095 lie outside {key}=\[0,4000\]"):
        FolderImages(tmp_path, 0, value_range=(0, 4000), role=role).read(0, 1)


def test_folder_identity_follows_contents_not_names(tmp_path):
    for folder, grey in (("one", 10), ("two", 10), ("three", 11)):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.full((4, 4), grey, np.uint8)).save(tmp_path / folder / f"{folder}.png")
    one, two, three = (FolderImages(tmp_path / name, 0).identity() for name in ("one", "two", "three"))
    assert one == two != three


def test_folder_groups_come_from_a_csv(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(folder / f"{i}.png")
    table = tmp_path / "patients.csv"
    table.write_text("file,group\n0.png,a\n1.png,a\n2.png,b\n3.png,b\n")
    images = FolderImages(folder, 0, groups=table)
    assert dict(zip(images.names, images.groups, strict=True)) == {
        "0.png": "a",
        "1.png": "a",
        "2.png": "b",
        "3.png": "b",
    }
    table.write_text("file,group\n0.png,a\n")
    with pytest.raises(ConfigError, match=r"says nothing of 3 of 4 files, e.g. 1.png"):
        FolderImages(folder, 0, groups=table)
    table.write_text("name;group\n")
    with pytest.raises(DataError, match="no column file"):
        FolderImages(folder, 0, groups=table)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no image"):
        FolderImages(tmp_path, 0)


def test_images_of_a_data_set_keep_their_groups(tmp_path):
    root = write_kidney(tmp_path / "data")
    data = CTKidney(ConstantSchedule((32, 32), 4, 8), 0, str(root), str(tmp_path / "cache"), block_size=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.setup()
    images = RealImages(data, ["train"], seed=0)
    assert len(images) == data.size("train")
    by_name = {record.name: i for i, record in enumerate(data.split_records("train"))}
    whole = torch.cat(list(data.images("train", 64)))
    for i in (0, 5, len(images) - 1):
        assert torch.equal(images.read(i, i + 1)[0], whole[by_name[images.names[i]]])
        assert images.groups[i] == data.split_records("train")[by_name[images.names[i]]].group
    both = RealImages(data, ["val", "test"], seed=0)
    assert len(both) == data.size("val") + data.size("test")
    assert not set(both.groups) & set(images.groups)
    assert RealImages(data, ["train"], seed=1).identity() != images.identity()


def test_dicom_files_take_the_declared_range_and_their_polarity_is_checked_once(tmp_path, caplog):
    stored = np.linspace(0, 2047, 32 * 32).astype(np.uint16).reshape(32, 32)  # -1024 .. 1023 HU
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 0, "WindowWidth": 4}
    for number in range(3):
        write_mammogram(
            tmp_path / f"{number}.dcm", np.roll(stored, number), bits=12, PresentationLUTShape="INVERSE", **tags
        )
    plain = FolderImages(tmp_path, seed=0, hashes=tmp_path / "hashes")
    (said,) = [record.getMessage() for record in caplog.records if "PresentationLUTShape" in record.getMessage()]
    assert "3 files: PresentationLUTShape contradicts PhotometricInterpretation, which is followed" in said
    ranged = FolderImages(tmp_path, seed=0, value_range=(-160, 240), hashes=tmp_path / "hashes")
    shown = sorted(ranged.read(0, 1).flatten().tolist())
    expected = np.sort(np.clip((stored.ravel() - 1024.0 + 160) / 200 - 1, -1, 1))
    np.testing.assert_allclose(shown, expected, atol=1e-6)
    assert "reading" not in plain.identity() and ranged.identity()["reading"] == "-dicom_range"
