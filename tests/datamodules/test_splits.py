import hashlib
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.files.errors import DataError
from datamodules.records.splits import SPLITS, check_disjoint, represent_classes, split_by_group, stratified_split


@settings(deadline=None, max_examples=60)
@given(
    groups=st.lists(st.sampled_from("abcdefghijkl"), min_size=1, max_size=80),
    val=st.floats(0, 0.4),
    test=st.floats(0, 0.4),
    seed=st.integers(0, 5),
)
def test_no_group_is_in_two_parts_and_parts_do_not_exceed_their_share(groups, val, test, seed):
    strata = ["x" if group < "f" else "y" for group in groups]
    split = split_by_group(groups, strata, val, test, seed)
    check_disjoint(groups, split.tolist())
    for stratum in set(strata):
        inside = split[np.array(strata) == stratum]
        assert (inside == "test").sum() <= test * len(inside) + 1e-9
        assert (inside == "test").sum() + (inside == "val").sum() <= (val + test) * len(inside) + 1e-9


def test_shares_are_met_with_many_groups_and_every_class_is_in_every_part():
    groups = [f"{label}{i // 5}" for label in "ab" for i in range(1000)]
    strata = [group[0] for group in groups]
    split = split_by_group(groups, strata, 0.1, 0.2, seed=0)
    for label in "ab":
        inside = split[np.array(strata) == label]
        assert (inside == "val").mean() == pytest.approx(0.1, abs=0.01)
        assert (inside == "test").mean() == pytest.approx(0.2, abs=0.01)


def test_split_is_deterministic_and_depends_on_the_seed():
    groups = [str(i) for i in range(100)]
    first = split_by_group(groups, ["x"] * 100, 0.3, 0.3, 0)
    assert first.tolist() == split_by_group(groups, ["x"] * 100, 0.3, 0.3, 0).tolist()
    assert first.tolist() != split_by_group(groups, ["x"] * 100, 0.3, 0.3, 1).tolist()


def test_leak_is_named():
    with pytest.raises(ValueError, match="1 groups lie in more than one split: p1 in train and val"):
        check_disjoint(["p1", "p2", "p1"], ["train", "test", "val"])


@pytest.mark.parametrize("val, test", [(-0.1, 0.1), (0.5, 0.5), (0.1, 1.0)])
def test_impossible_shares_are_refused(val, test):
    with pytest.raises(ValueError, match="val_fraction="):
        split_by_group(["a"], ["x"], val, test, 0)


KIDNEY = ("Cyst", "Normal", "Stone", "Tumor")


@pytest.mark.parametrize("seed, golden", [(0, "5da9cd9561c2a056c2ca"), (1, "bb140136e1f840c63161")])
def test_split_of_many_groups_is_that_of_every_version_before(seed, golden):
    sizes = np.random.default_rng(5).integers(1, 60, 400)
    groups = [f"g{i:03}" for i, size in enumerate(sizes) for _ in range(size)]
    classes = [KIDNEY[int(group[1:]) % 4] for group in groups]
    split = split_by_group(groups, classes, 0.1, 0.1, seed)
    assert hashlib.sha256(" ".join(split).encode()).hexdigest()[:20] == golden
    kept = represent_classes(split, groups, [(name,) for name in classes], 0.1, 0.1, seed)
    assert kept.tolist() == split.tolist()


def represented(sizes, val, test, seed=0):
    """Split groups of given sizes; their names begin with their classes' initials, e.g. "xy 2"."""
    groups = [group for group, size in sizes.items() for _ in range(size)]
    labels = [tuple(group.split()[0]) if group[0] != " " else () for group in groups]
    split = split_by_group(groups, ["|".join(names) for names in labels], val, test, seed)
    found = represent_classes(split, groups, labels, val, test, seed)
    check_disjoint(groups, found.tolist())
    return dict(zip(groups, split, strict=True)), dict(zip(groups, found, strict=True))


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.lists(st.integers(1, 60), min_size=3, max_size=12), min_size=1, max_size=4),
    val=st.sampled_from([0, 0.1, 0.3]),
    test=st.sampled_from([0, 0.02, 0.2]),
    seed=st.integers(0, 5),
)
def test_every_class_of_three_groups_is_in_every_part_that_is_asked_for(sizes, val, test, seed):
    groups = {f"{'abcd'[i]} {j}": size for i, of_class in enumerate(sizes) for j, size in enumerate(of_class)}
    before, after = represented(groups, val, test, seed)
    asked = {"train"} | ({"val"} if val else set()) | ({"test"} if test else set())
    for i, of_class in enumerate(sizes):
        names = [f"{'abcd'[i]} {j}" for j in range(len(of_class))]
        assert {after[name] for name in names} == asked
        moved = [name for name in names if before[name] != after[name]]
        assert len(moved) == len(asked - {before[name] for name in names})


def test_moved_groups_are_near_to_the_share_and_depend_on_the_seed():
    sizes = {f"a {i}": 30 for i in range(8)} | {"a 8": 200, "a 9": 200}
    tests = set()
    for seed in range(8):
        before, after = represented(sizes, 0, 0.04, seed)  # 25.6 images
        assert "test" not in before.values()
        (moved,) = [name for name, part in after.items() if part == "test"]
        assert sizes[moved] == 30
        tests.add(moved)
    assert len(tests) > 1


@pytest.mark.parametrize("groups, val, test", [(2, 0.1, 0.1), (1, 0.1, 0), (1, 0, 0.1)])
def test_class_of_too_few_groups_is_refused_by_name(groups, val, test):
    sizes = {f"a {i}": 5 for i in range(20)} | {f"b {i}": 5 for i in range(groups)}
    with pytest.raises(
        DataError, match=rf"class b has {groups} groups .* too few for one each in train,.*val_fraction=0"
    ):
        represented(sizes, val, test)
    assert set(represented(sizes, 0, 0)[1].values()) == {"train"}


def test_two_groups_of_a_class_are_enough_for_two_parts():
    sizes = {f"a {i}": 5 for i in range(20)} | {"b 0": 5, "b 1": 5}
    after = represented(sizes, 0.1, 0)[1]
    assert {after["b 0"], after["b 1"]} == {"train", "val"}


def test_rare_label_beside_others_is_left_where_it_is_and_empty_parts_are_refused():
    sizes = {f"ab {i}": 4 for i in range(20)} | {"ac 0": 4}
    before, after = represented(sizes, 0.1, 0.1)
    assert before == after and set(after.values()) == set(SPLITS) and after["ac 0"] == "train"
    with pytest.raises(DataError, match=r"2 groups \(patients\) are too few .*data.test_fraction"):
        represented({"ab 0": 4, "ab 1": 4}, 0.1, 0.1)


def test_last_group_of_another_class_is_not_taken_away():
    after = represented({"ab 0": 9, "a 1": 9, "a 2": 9, "ab 3": 9, "ab 4": 9, "bc 5": 9}, 0, 0.1)[1]
    assert {part for name, part in after.items() if "b" in name} == {"train", "test"} and after["bc 5"] == "train"


def test_images_without_classes_are_one_class():
    assert set(represented({f" {i}": 3 for i in range(4)}, 0.1, 0.1)[1].values()) == set(SPLITS)
    with pytest.raises(DataError, match="the data set has 2 groups"):
        represented({f" {i}": 3 for i in range(2)}, 0.1, 0.1)


def mean_label_groups(groups=300, images=3):
    """Groups of images with four labels, the last one rare."""
    random = np.random.default_rng(0)
    labels = random.random((groups * images, 4)) < [0.5, 0.3, 0.6, 0.02]
    labels[:30, 3] = True  # all images of the first ten groups
    return [f"p{i // images:04}" for i in range(groups * images)], labels


def test_stratified_split_keeps_groups_together_and_labels_balanced(tmp_path):
    groups, labels = mean_label_groups()
    split = stratified_split(groups, labels, 0.1, 0.2, 0, tmp_path)
    check_disjoint(groups, split.tolist())
    assert {part: (split == part).mean() for part in SPLITS} == pytest.approx(
        {"train": 0.7, "val": 0.1, "test": 0.2}, abs=0.01
    )
    for part in SPLITS:
        assert labels[split == part][:, :3].mean(axis=0) == pytest.approx(labels[:, :3].mean(axis=0), abs=0.06)
    rare = {groups[i] for i in range(30)}
    found = {part: len(rare & set(np.array(groups)[split == part])) for part in SPLITS}
    assert found == {"train": 7, "val": 1, "test": 2}


def test_stratified_split_depends_on_seed_and_shares_but_not_on_the_order_of_images(tmp_path):
    groups, labels = mean_label_groups()
    first = stratified_split(groups, labels, 0.1, 0.2, 0, tmp_path)
    assert first.tolist() != stratified_split(groups, labels, 0.1, 0.2, 1, tmp_path).tolist()
    assert first.tolist() != stratified_split(groups, labels, 0.2, 0.2, 0, tmp_path).tolist()
    assert len(list((tmp_path / "splits").iterdir())) == 3
    backwards = stratified_split(groups[::-1], labels[::-1], 0.1, 0.2, 0, tmp_path)
    assert first.tolist() == backwards[::-1].tolist()
    assert len(list((tmp_path / "splits").iterdir())) == 3


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"p0000": "train"}', b"null", "deep", "part", "half"]
)
def test_damaged_stratified_split_is_computed_again(tmp_path, caplog, damage):
    groups, labels = mean_label_groups(30)
    first = stratified_split(groups, labels, 0.1, 0.2, 0, tmp_path)
    (path,) = (tmp_path / "splits").iterdir()
    whole = path.read_bytes()
    if damage == "part":
        damage = whole.replace(b'"val"', b'"vel"')
    elif damage == "deep":
        damage = b"[" * 100_000
    elif damage == "half":
        damage = whole[: len(whole) // 2]
    path.write_bytes(damage)
    assert stratified_split(groups, labels, 0.1, 0.2, 0, tmp_path).tolist() == first.tolist()
    assert "is damaged" in caplog.text
    assert path.read_bytes() == whole
    assert (tmp_path / "splits").stat().st_mode & 0o777 == 0o700


def test_stratified_split_without_held_out_parts_needs_no_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "iterstrat.ml_stratifiers", None)  # importing it raises
    assert set(stratified_split(*mean_label_groups(5), 0.0, 0.0, 0, tmp_path)) == {"train"}
    assert stratified_split([], np.zeros((0, 4)), 0.1, 0.1, 0, tmp_path).tolist() == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("groups, val, test, part", [(1, 0.1, 0.0, "val"), (1, 0.0, 0.1, "test"), (2, 0.4, 0.4, "val")])
def test_stratified_split_that_leaves_a_part_empty_is_refused(tmp_path, groups, val, test, part):
    with pytest.raises(DataError, match=rf"{groups} groups .* too few .*data.{part}_fraction"):
        stratified_split(*mean_label_groups(groups, 10), val, test, 0, tmp_path)
    assert not list(tmp_path.iterdir())


def test_unwritable_folder_of_splits_is_named(tmp_path):
    (tmp_path / "splits").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"data.cache_dir="):
        stratified_split(*mean_label_groups(30), 0.1, 0.2, 0, tmp_path)


def test_stratified_split_refuses_impossible_shares(tmp_path):
    with pytest.raises(ValueError, match="val_fraction="):
        stratified_split(*mean_label_groups(30), 0.5, 0.5, 0, tmp_path)
