"""Evaluations side by side: paired differences, fingerprints, what is refused."""

import csv
import json

import numpy as np
import pytest

from experiments.compare import main
from experiments.configuration.errors import ConfigError
from experiments.evaluation.comparison import compare, details, read_evaluation, table, what_differs

K = 40


def row(name, value, replicates, better="lower", **fingerprint):
    numbers = {"low": value - 1.0, "high": value + 1.0, "replicates": [float(r) for r in replicates], "freedom": K - 1}
    numbers |= {
        "floor": 0.0,
        "floor_low": 0.0,
        "floor_high": 0.0,
        "at_floor_size": value,
        "verdict": "within the floor",
    }
    return {"name": name, "score": name, "value": value, "better": better, "fingerprint": fingerprint, **numbers}


def write(folder, *rows):
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps({"scores": list(rows)}))
    return folder


@pytest.fixture
def shared():
    """What the halves of the real images do to every score alike."""
    return np.random.default_rng(0).normal(size=K)


def noise(seed, scale=0.1):
    return np.random.default_rng(seed).normal(scale=scale, size=K)


def test_a_difference_is_paired(tmp_path, shared):
    """The spread of 1 that both share cancels: a difference of 0.5 would be nothing to it."""
    a = write(tmp_path / "a", row("fid", 10.0, 10.0 + shared + noise(1)))
    b = write(tmp_path / "b", row("fid", 10.5, 10.5 + shared + noise(2)))
    (difference,) = compare([read_evaluation(a), read_evaluation(b)])["fid"]
    assert difference.value == pytest.approx(0.5)
    assert difference.low > 0.1 and difference.high < 0.9
    assert difference.significant and difference.better is False
    spread = np.std(noise(2) - noise(1), ddof=1)
    assert difference.high - difference.low == pytest.approx(2 * 2.0227 * spread, rel=1e-3)


def test_the_better_side_depends_on_the_score(tmp_path, shared):
    names = [("fid", "lower"), ("recall", "higher"), ("ms_ssim", "as real")]
    a = write(tmp_path / "a", *(row(name, 1.0, 1.0 + noise(1), better) for name, better in names))
    b = write(tmp_path / "b", *(row(name, 2.0, 2.0 + noise(2), better) for name, better in names))
    found = compare([read_evaluation(a), read_evaluation(b)])
    assert [found[name][0].better for name, _ in names] == [False, True, None]


def test_equal_generators_seldom_differ_significantly(tmp_path):
    """Twenty scores of no difference: without Holm's correction one of them would be significant on average."""
    wrong = 0
    for trial in range(40):
        random = np.random.default_rng(trial)
        spread, rows = 1.0, {"a": [], "b": []}
        for i in range(20):
            for key in rows:
                rows[key].append(row(f"score{i}", random.normal(scale=spread), random.normal(scale=spread, size=K)))
        a, b = (write(tmp_path / f"{trial}{key}", *rows[key]) for key in rows)
        differences = compare([read_evaluation(a), read_evaluation(b)])
        wrong += any(one.significant for (one,) in differences.values())
    assert wrong <= 6


def test_other_fingerprints_are_refused_unless_allowed(tmp_path, capsys):
    a = write(tmp_path / "a", row("fid", 1.0, noise(1), generated=1000))
    b = write(tmp_path / "b", row("fid", 2.0, noise(2), generated=2000))
    both = [read_evaluation(a), read_evaluation(b)]
    assert details(both) == [("fid", "b", "generated", "2000", "1000")]
    (said,) = what_differs(both)
    assert said == "b differs from a in generated (2000, not 1000); evaluate both with the same suite."
    assert main([str(a), str(b), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "generated (2000, not 1000)" in said and "--allow-different" in said
    assert not (tmp_path / "out").exists()
    (difference,) = compare([read_evaluation(a), read_evaluation(b)])["fid"]
    assert difference.value == 1.0 and difference.low is None and difference.p is None  # nothing is paired
    assert main([str(a), str(b), "--allow-different", "--output", str(tmp_path / "out")]) == 0
    assert "NOT taken in the same way" in (tmp_path / "out" / "comparison.html").read_text()


def test_other_data_are_named_in_one_sentence(tmp_path, capsys):
    """A real fingerprint holds dozens of values, and every score repeats them."""
    for name, data_set in (("a", "Phantoms"), ("b", "ChestXray14")):
        real = {"data_set": data_set, "split": "test", "images": 2000, "fingerprint": name * 20, "groups": name * 64}
        more = {f"setting_{i}": f"{name}{i}" * 20 for i in range(12)}
        rows = [row(f"score{i}", 1.0, noise(i), real=real, **more) for i in range(16)]
        write(tmp_path / name, *rows)
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    _, said, hint = capsys.readouterr().err.splitlines()
    assert "b differs from a in the real images (2000 of ChestXray14 test, not 2000 of Phantoms test)" in said
    assert "evaluate both against the same images (against=FOLDER)" in said and "{" not in said and len(said) < 300
    assert "--allow-different" in hint
    out = tmp_path / "out"
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--allow-different", "--output", str(out)]) == 0
    assert "b" * 20 in (out / "comparison.html").read_text()  # in full where there is room


def test_the_table_is_printed_and_written(tmp_path, capsys):
    a = write(tmp_path / "a", row("fid", 1.0, 1.0 + noise(1)), row("only_a", 3.0, noise(1)))
    b = write(tmp_path / "b", row("fid", 4.0, 4.0 + noise(2)))
    refused = {"name": "fid", "score": "fid", "value": None, "better": "lower", "fingerprint": {}, "refused": "too few"}
    c = write(tmp_path / "c", refused)
    assert main([str(a), str(b), str(c), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "+3 (" in said and "worse" in said and "*" in said
    rows = list(csv.reader((tmp_path / "out" / "comparison.csv").open()))
    assert rows[0][:4] == ["score", "a", "b", "difference"]
    assert rows[1][0] == "fid" and rows[1][5] == "'-"
    assert rows[2][0] == "only_a" and rows[2][2] == "'-"
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "http" not in page and "<script" not in page


def test_a_run_stands_for_its_newest_evaluation(tmp_path):
    run = tmp_path / "runs" / "kidney" / "20260101-000000-0000"
    write(run / "evaluation" / "quick-000000000001", row("fid", 1.0, noise(1)))
    found = read_evaluation(run)
    assert found.name == "kidney/20260101-000000-0000"
    assert table([found, found], compare([found, found]))[0][1] == found.name


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"scores": [{"name": "fid"}]}', '{"scores": [{"name": "a", "value": "<b>"}]}', "[" * 9999],
)
def test_what_is_no_evaluation_is_refused(tmp_path, content):
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(ConfigError, match=r"scores.json: is no evaluation"):
        read_evaluation(tmp_path)


def test_a_missing_evaluation_says_what_to_run(tmp_path):
    with pytest.raises(ConfigError, match=r"run python -m experiments.evaluate first"):
        read_evaluation(tmp_path)
