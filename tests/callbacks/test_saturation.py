"""A score that only wanders: given series with known answers, and the same after a resume."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import newest_checkpoint, tiny_config
from scipy.stats import kendalltau

from callbacks import health
from callbacks.saturation import TREND, WINDOW, Scored, saturation
from experiments.record.report import write_report
from experiments.record.tracking import read_rows
from experiments.running.training import train

WANDERING = (0.05, 0.08, 0.03, 0.06, 0.09, 0.04, 0.07, 0.035, 0.06, 0.05)


def scored(values):
    return [Scored(images_seen=20_000 * (i + 1), value=float(value)) for i, value in enumerate(values)]


def test_wandering_score_is_told_with_range_and_clock():
    assert saturation(scored([80.0, 1.0, *WANDERING])) == (
        "the score has only wandered between 0.03 and 0.09 since 60,000 images (10 scores without a trend): an "
        "improvement of less than that does not show in so few of them"
    )


@pytest.mark.parametrize(
    "values",
    {
        "none": [],
        "few": WANDERING[:-1],
        "falling": np.geomspace(80.0, 0.05, 30),
        "falling slowly under some noise": 0.1 - 0.005 * np.arange(10) + 0.008 * np.tile([1, -1], 5),
        "rising": np.linspace(0.05, 0.1, 30),
        "end of a steep fall": [80.0, *WANDERING[1:]],
        "new best": [*WANDERING[:-1], 0.01],
        "broken": [*WANDERING[:-1], float("nan")],
        "constant": [0.05] * 12,  # no score of a generator that moves
    }.items(),
    ids=lambda case: case[0],
)
def test_nothing_is_told_of_other_series(values):
    assert saturation(scored(values[1])) == ""


def test_trend_is_kendalls():
    random = np.random.default_rng(0)
    told = 0
    for _ in range(500):
        values = random.permutation(WINDOW)
        ends = values[0] == max(values) or values[-1] == min(values)
        expected = not ends and abs(kendalltau(range(WINDOW), values).statistic) < TREND
        assert bool(saturation(scored(values))) == expected
        told += expected
    assert told > 300


def test_how_often_it_is_right():
    """Scores without a trend are told two times in three, a fall of four times the scatter once in a hundred."""
    random = np.random.default_rng(1)
    shares = []
    for fall in (0.0, 4.0):
        series = random.normal(size=(1000, WINDOW)) - np.linspace(0.0, fall, WINDOW)
        shares.append(np.mean([bool(saturation(scored(values))) for values in series]))
    assert shares[0] == pytest.approx(2 / 3, abs=0.05) and shares[1] < 0.02


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return train(tiny_config("dcgan", folder, "callbacks.score.every_images=8"))


def state_of(checkpoint):
    return torch.load(checkpoint, weights_only=True)["callbacks"]["Health"]


def test_checkpoint_holds_the_last_scores_of_the_record(finished):
    kept = state_of(newest_checkpoint(finished))["scores"]
    rows = read_rows(finished / "scores.jsonl")
    assert kept == [{"images_seen": row["images_seen"], "value": row["value"]} for row in rows[-WINDOW:]]
    assert len(rows) == 13 and kept[-1]["images_seen"] == 96


def test_resumed_run_says_the_same(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(health, "saturation", lambda scores: str([score.value for score in scores]))
    part = shutil.copytree(finished, tmp_path / "runs" / "dcgan" / finished.name)
    checkpoint = part / "checkpoints" / "images_000000000056.ckpt"
    overrides = ["callbacks.score.every_images=8", f"resume={checkpoint}"]
    assert train(tiny_config("dcgan", tmp_path, *overrides)) == part
    values = [row["value"] for row in read_rows(finished / "scores.jsonl")[-WINDOW:]]
    assert json.loads((part / "health.json").read_text())["score_remark"] == str(values)
    assert state_of(newest_checkpoint(part)) == state_of(newest_checkpoint(finished))
    assert f"A remark: {values}." in write_report(part).read_text()


def test_scores_of_another_kind_begin_a_new_series(finished, tmp_path):
    part = shutil.copytree(finished, tmp_path / "runs" / "dcgan" / finished.name)
    checkpoint = part / "checkpoints" / "images_000000000056.ckpt"
    overrides = ["callbacks.score.every_images=8", "callbacks.score.count=9", "allow_changes=true"]
    assert train(tiny_config("dcgan", tmp_path, *overrides, f"resume={checkpoint}")) == part
    assert [score["images_seen"] for score in state_of(newest_checkpoint(part))["scores"]] == [64, 72, 80, 88, 96]


def test_scores_of_a_network_that_grows_do_not_count(tmp_path):
    run = train(tiny_config("progressive", tmp_path, "callbacks.score.every_images=8"))
    clocks = [score["images_seen"] for score in state_of(newest_checkpoint(run))["scores"]]
    scored_at = [row["images_seen"] for row in read_rows(run / "scores.jsonl")]
    assert 0 < len(clocks) < len(scored_at) - 1 and clocks == scored_at[-len(clocks) :]
    alphas = {
        row["images_seen"]: row["health/alpha"] for row in read_rows(run / "metrics.jsonl") if "health/alpha" in row
    }
    assert all(alphas.get(clock, 1.0) == 1.0 for clock in clocks)


def test_state_of_an_older_checkpoint_is_taken():
    watch = health.Health()
    watch.load_state_dict({"recent": [], "measured": 0, "since": 0})
    assert watch.scores == [] and watch.score_kind == ""
    health.Measurements.model_validate({"recent": [], "measured": 0, "since": 0})
    health.Measurements.model_validate(watch.state_dict())
