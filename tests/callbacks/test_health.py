"""The health watch: what it says of given signals, that it says the same after a resume, and that it only watches."""

import json
import re
import shutil

import pytest
import torch
from conftest import ROOT, assert_same_state, newest_checkpoint, tiny, tiny_config

from callbacks import health
from callbacks.divergence import DivergedError
from callbacks.health import HEALTHY, ILLNESSES, PERSISTENT, STARTING, WARM_UP, Health, judge
from experiments.configuration.experiment import experiment_of
from experiments.record.report import write_report
from experiments.record.tracking import read_rows
from experiments.running.parts import build
from experiments.running.training import train

FINE = {
    "margin": 4.0,
    "diversity": 0.8,
    "update": 0.003,
    "gradient_ratio": 2.0,
    "precision": 0.5,
    "recall": 0.4,
    "alpha": 1.0,
    "overfitting": 0.1,
    "overfitting_margin": 0.2,
    "nearest_ratio": 1.0,
}
ENOUGH = WARM_UP + PERSISTENT
FAMILIES = ("dcgan", "wgan_gp", "wgan", "kidney_gan", "progressive", "progressive_r1")


def ill(illness, **changes):
    """Signals just beyond every limit of an illness."""
    beyond = {limit.signal: limit.value * (1.01 if limit.side == "above" else 0.99) for limit in illness.limits}
    return {**FINE, **beyond, **changes}


IN_WORDS = {
    "alpha": "no stage is fading in",
    "overfitting": "nearer to generated than to training",
    "overfitting_margin": "more than a standard deviation",
    "nearest_ratio": "three times nearer",
}


def test_names_and_limits_are_those_of_the_page():
    rows = dict(
        re.findall(r"^\| ([a-z ]+) \| (.*) \|$", (ROOT / "experiments/docs/watch.md").read_text(), flags=re.MULTILINE)
    )
    for illness in ILLNESSES:
        for limit in illness.limits:
            assert IN_WORDS.get(limit.signal, f"{limit.value:g}") in rows[illness.verdict], limit
    assert all(limit.reason.endswith((".", "hence:")) for illness in ILLNESSES for limit in illness.limits)


@pytest.mark.parametrize("illness", ILLNESSES, ids=lambda illness: f"{illness.verdict} {illness.limits[0].signal}")
def test_verdict_is_given_beyond_all_limits_and_not_on_the_healthy_side_of_one(illness):
    verdict = judge([ill(illness)] * PERSISTENT, ENOUGH)
    assert verdict.name == illness.verdict and verdict.advice == illness.advice
    for limit in illness.limits:
        # A number without its limit says nothing.
        assert limit.signal == "alpha" or f"{limit.value:g}" in verdict.sentence
        inside = limit.value * (0.99 if limit.side == "above" else 1.01)
        assert judge([ill(illness, **{limit.signal: inside})] * PERSISTENT, ENOUGH).name == HEALTHY
        missing = ill(illness)
        del missing[limit.signal]
        assert judge([missing] * PERSISTENT, ENOUGH).name == HEALTHY


@pytest.mark.parametrize("illness", ILLNESSES[:4], ids=lambda illness: illness.verdict)
@pytest.mark.parametrize("good", range(PERSISTENT))
def test_one_good_measurement_in_the_row_is_enough(illness, good):
    recent = [FINE if i == good else ill(illness) for i in range(PERSISTENT)]
    assert judge(recent, 10).name == HEALTHY


def test_first_measurements_are_not_judged():
    assert judge([], 0).name == STARTING
    assert judge([ill(ILLNESSES[0])] * PERSISTENT, ENOUGH - 1).name == STARTING
    assert judge([ill(ILLNESSES[0])] * PERSISTENT, ENOUGH).name == "diverging"


def test_what_explains_the_rest_is_named():
    everything = ill(ILLNESSES[1], diversity=0.1, update=0.5)
    for expected in ILLNESSES[:3]:
        assert judge([everything] * PERSISTENT, ENOUGH).name == expected.verdict
        everything[expected.limits[0].signal] = FINE[expected.limits[0].signal]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(tiny_config("dcgan", tmp_path_factory.mktemp("run"), "data.val_fraction=0.4", "data.count=60"))


def test_record_holds_every_signal_and_the_word(finished):
    rows = [row for row in read_rows(finished / "metrics.jsonl") if "health/verdict" in row]
    assert [row["images_seen"] for row in rows] == [16, 32, 48, 64, 80, 96]
    expected = {f"health/{name}" for name in FINE} - {"health/nearest_ratio"}
    assert all({key for key in row if key.startswith("health/")} == {*expected, "health/verdict"} for row in rows)
    assert rows[0]["health/verdict"] == STARTING and rows[-1]["health/verdict"] != STARTING


def test_file_says_verdict_signals_limits_and_reasons(finished):
    said = json.loads((finished / "health.json").read_text())
    last = [row for row in read_rows(finished / "metrics.jsonl") if "health/verdict" in row][-1]
    assert said["verdict"] == last["health/verdict"] and said["images_seen"] == 96
    assert said["signals"] == {k[7:]: v for k, v in last.items() if k.startswith("health/") and k != "health/verdict"}
    assert said["since_images_seen"] == 80  # the fifth measurement is the first that is judged
    assert {(limit["signal"], limit["side"]) for limit in said["limits"]} >= {("margin", "above"), ("margin", "below")}
    assert all(limit["reason"] for limit in said["limits"])


def test_progress_log_and_report_say_it_in_words(finished):
    said = json.loads((finished / "health.json").read_text())
    lines = (finished / "log.txt").read_text().splitlines()
    assert said["verdict"] in next(line for line in lines if "images_seen 96 (" in line)
    assert sum("images_seen 80:" in line and "health" in line for line in lines) == 1
    report = (finished / "report.html").read_text()
    assert f"Health: {said['verdict']} since 80 images seen." in report


def test_report_escapes_what_the_file_says(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "run" / "copy")
    said = json.loads((copy / "health.json").read_text())
    said["sentence"] = said["limits"][0]["reason"] = "<script>alert(1)</script>"
    said["limits"][0]["signal"] = said["verdict"] = said["advice"] = "<b>"
    (copy / "health.json").write_text(json.dumps(said))
    text = write_report(copy).read_text()
    assert "<script>" not in text and "<b>" not in text and "&lt;script&gt;" in text
    (copy / "health.json").unlink()
    assert "Nobody watched" in write_report(copy).read_text()


@pytest.mark.parametrize(
    "family",
    [
        "dcgan",
        "progressive",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("wgan_gp", "wgan", "kidney_gan", "progressive_r1")),
    ],
)
def test_watching_changes_no_bit_of_the_run(family, tmp_path):
    watched = train(tiny_config(family, tmp_path / "watched", "data.val_fraction=0.4", "data.count=60"))
    alone = train(
        tiny_config(family, tmp_path / "alone", "data.val_fraction=0.4", "data.count=60", "callbacks.health=null")
    )
    left, right = newest_checkpoint(watched), newest_checkpoint(alone)
    assert_same_state(left, right)
    assert any("health/margin" in row for row in read_rows(watched / "metrics.jsonl"))
    assert not (alone / "health.json").exists()
    scores = [[row["value"] for row in read_rows(run / "scores.jsonl")] for run in (watched, alone)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_training_and_leave_no_trace(family, tmp_path):
    module = build(experiment_of(tiny_config(family, tmp_path))).module
    images = torch.rand(8, 1, *module.schedule.at(0).resolution) * 2 - 1
    before = {key: value.clone() for key, value in module.state_dict().items()}
    torch.manual_seed(3)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    scores = module.critic_scores(images)
    assert torch.equal(torch.rand(1), drawn)
    assert scores.shape == (8,) and scores.dtype == torch.float32 and not scores.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    network = module.critic if hasattr(module, "critic") else module.discriminator
    assert network.training
    torch.testing.assert_close(scores, network(images))


def test_family_that_does_not_say_how_it_scores_is_refused_before_training(tmp_path, monkeypatch, capsys):
    from experiments import run
    from lightning_modules.dcgan import DCGAN

    monkeypatch.delattr(DCGAN, "critic_scores")
    assert run.main(tiny("dcgan", tmp_path)) == 2
    said = "callbacks.health: Health needs a family that judges, which DCGAN does not; set it to null"
    assert said in capsys.readouterr().err


def test_real_images_are_shown_at_the_stage_and_fade_of_the_clock(tmp_path):
    from lightning_modules.progressive_gan import fade

    module = build(experiment_of(tiny_config("progressive", tmp_path))).module
    real = torch.rand(2, 1, 20, 16)
    assert module.as_shown(real).shape == (2, 1, 5, 4)
    module.images_seen = 72  # 20x16, alpha 0.4
    module.set_point(module.schedule.at(72))
    torch.testing.assert_close(module.as_shown(real), fade(real, 0.4))


def test_without_held_out_images_it_says_so_and_measures_the_rest(tmp_path):
    directory = train(tiny_config("dcgan", tmp_path))  # 4 held-out images
    row = next(row for row in read_rows(directory / "metrics.jsonl") if "health/margin" in row)
    assert "health/overfitting" not in row
    assert "fewer than 16 held-out images" in (directory / "log.txt").read_text()


@pytest.mark.parametrize("known", [True, False])
def test_discriminator_that_knows_its_images_is_seen(known, tmp_path, monkeypatch):
    """Scores are given: generated images 0, held-out images 1, training images 9 if they are known by heart."""
    parts = build(experiment_of(tiny_config("dcgan", tmp_path, "data.val_fraction=0.4", "data.count=60")))
    parts.data.prepare_data()
    parts.data.setup()
    real = {split: next(parts.data.images(split, 100)).flatten(1) for split in ("train", "val")}
    noise = torch.linspace(-0.1, 0.1, 8)

    def scores(images, labels=None):
        flat = images.flatten(1)
        near = {split: (flat[:, None] == rows).all(dim=2).any(dim=1).float() for split, rows in real.items()}
        return near["train"] * (9.0 if known else 1.0) + near["val"] + noise[: len(images)]

    monkeypatch.setattr(parts.module, "critic_scores", scores)

    class Trainer:
        datamodule, world_size = parts.data, 1

    watch = Health(count=16)
    monkeypatch.setattr(watch, "_steps", lambda *_: {"update": 0.001, "gradient_ratio": 1.0})
    signals = watch._measure(Trainer(), parts.module)
    assert signals["overfitting"] == pytest.approx(8 / 9 if known else 0.0, abs=0.01)
    parts.module.record.latest["nearest/ratio"] = 0.2
    assert watch._measure(Trainer(), parts.module)["nearest_ratio"] == 0.2
    name = judge([{**FINE, **{key: signals[key] for key in ("overfitting", "overfitting_margin")}}] * 3, 9).name
    assert name == ("memorising" if known else HEALTHY)


def test_resumed_run_says_the_same(finished, tmp_path):
    """The resume tests compare all rows of the record; here the checkpoint lies between two measurements."""
    part = shutil.copytree(finished, tmp_path / "runs" / "dcgan" / finished.name)
    checkpoint = part / "checkpoints" / "images_000000000072.ckpt"
    state = torch.load(checkpoint, weights_only=True)["callbacks"]["Health"]
    assert state["measured"] == 4 and len(state["recent"]) == PERSISTENT
    overrides = ["data.val_fraction=0.4", "data.count=60", f"resume={checkpoint}"]
    assert train(tiny_config("dcgan", tmp_path, *overrides)) == part
    assert (part / "health.json").read_text() == (finished / "health.json").read_text()


def test_state_continues_a_verdict():
    first, second = Health(), Health()
    first.recent, first.measured, first.since = [ill(ILLNESSES[0])] * PERSISTENT, 7, 140_000
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second._judge() == first._judge() and second._judge().name == "diverging" and second.since == 140_000


def test_ill_run_warns_with_what_to_do(tmp_path, monkeypatch):
    """At a rate of 0.5 every step changes the weights many times over."""
    directory = train(tiny_config("wgan_gp", tmp_path, "module.learning_rate=0.5"))
    said = json.loads((directory / "health.json").read_text())
    assert said["verdict"] == "diverging" and said["signals"]["update"] > 0.03
    warning = next(line for line in (directory / "log.txt").read_text().splitlines() if "a single step changes" in line)
    assert "WARNING" in warning and "healthy: update at most 0.03" in warning and "lower the learning rate" in warning


def test_run_that_diverged_leaves_the_verdict(tmp_path):
    config = tiny_config("wgan_gp", tmp_path, "module.learning_rate=1e30", "callbacks.divergence.every_batches=1")
    with pytest.raises(DivergedError):
        train(config)
    (directory,) = (tmp_path / "runs" / "wgan_gp").iterdir()
    said = json.loads((directory / "health.json").read_text())
    assert said["verdict"] == "diverging" and "NaN or infinite" in said["sentence"]


def test_measurements_follow_the_steps_of_the_generator(tmp_path):
    """A critic that takes 5 steps: the first batch from each multiple of 16 on in which the generator moved."""
    overrides = ["module.critic_steps=5", "schedule.total_images=160"]
    directory = train(tiny_config("wgan", tmp_path, *overrides))
    rows = [row for row in read_rows(directory / "metrics.jsonl") if "health/margin" in row]
    assert [row["images_seen"] for row in rows] == [40, 80, 120, 160]


@pytest.mark.parametrize("arguments", [{"every_images": 0}, {"count": health.MIN_HELD_OUT - 1}])
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="="):
        Health(**arguments)


@pytest.mark.slow
def test_study_names_every_failure_once_and_no_healthy_run(tmp_path, capsys):
    from experiments.benchmarks.instruments.health import main

    main(["--folder", str(tmp_path), "--failures", "1", "--healthy", "2"])
    out = capsys.readouterr().out
    assert "4 of 4" in out and "0 of 2" in out
    rows = (tmp_path / "runs.jsonl").read_text()
    main(["--folder", str(tmp_path), "--failures", "1", "--healthy", "2"])  # nothing is run twice
    assert (tmp_path / "runs.jsonl").read_text() == rows
