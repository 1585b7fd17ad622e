import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.splits import check_disjoint, split_by_group


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
