"""A translator in its smallest form goes through everything that a run goes through."""

import json

import numpy as np
import pytest
import torch
from conftest import newest_checkpoint
from PIL import Image
from toy_runs import arguments, assert_resumes, in_two_processes, state_of, trained

from callbacks.translation_grid import write_rows
from experiments import run as verb
from experiments.configuration.errors import ConfigError
from experiments.configuration.experiment import experiment_of
from experiments.record.loading import data_of, load_run, load_trained
from experiments.record.run_directory import recorded_config
from experiments.record.tracking import read_rows
from lightning_modules.metrics.separation import d_prime
from lightning_modules.networks.latents import sample_noise
from lightning_modules.protocols import Averages, Clocked, Judges, Samples, Translates, can

NOISY = ["name=noisy", "module.noisy=true"]
UNPAIRED = ["name=unpaired", "data.paired=false", "module.needs_pairs=false"]
UNPAIRED += ["callbacks.score._target_=callbacks.fid.FrechetScore", "callbacks.score.split=val"]
UNPAIRED += ["callbacks.score.extractor._target_=lightning_modules.metrics.features.RandomConvNet"]

CONDITIONAL = ["module._target_=lightning_modules.toy_conditional.ToyConditional", "module.classes=[Cyst]"]


@pytest.fixture(scope="module")
def noisy_run(tmp_path_factory):
    return trained("translator", tmp_path_factory.mktemp("noisy"), *NOISY)


@pytest.fixture(scope="module")
def unpaired_run(tmp_path_factory):
    return trained("translator", tmp_path_factory.mktemp("unpaired"), *UNPAIRED)


def loaded(run):
    """Return a run's family and its data."""
    return load_trained(run, "cpu", Translates).module, data_of(experiment_of(recorded_config(run)))


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def scores_of(run, name):
    return {row["images_seen"]: row[name] for row in read_rows(run / "metrics.jsonl") if name in row}


def test_what_it_can_do(translator_run):
    module, _ = loaded(translator_run)
    assert all(can(module, what) for what in (Clocked, Averages, Translates, Judges)) and not can(module, Samples)
    with pytest.raises(ConfigError, match="ToyTranslator makes no images from latents"):
        load_run(translator_run)


# Resuming ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clock", [8, 48])  # the pool is half full, full
def test_run_resumes_to_the_bit(noisy_run, tmp_path, clock):
    assert_resumes(noisy_run, tmp_path, lambda resume: trained("translator", tmp_path, *NOISY, resume), clock)
    filled = state_of(noisy_run / "checkpoints" / f"images_{clock:012d}.ckpt")["process_state"]["filled"]
    assert filled.tolist() == [min(2, clock // 8)]


@pytest.mark.slow
def test_run_of_two_processes_resumes_to_the_bit(tmp_path):
    (tmp_path / "whole").mkdir()
    whole = in_two_processes("translator", tmp_path / "whole")
    pools = state_of(newest_checkpoint(whole))["process_state"]["pool"]
    assert len(pools) == 2 and not torch.equal(pools[0], pools[1])
    assert_resumes(whole, tmp_path, lambda resume: in_two_processes("translator", tmp_path, resume), 8)
    # Both processes together measure all pairs, as one would.
    assert scores_of(whole, "score/mean_absolute_error")[96] == pytest.approx(error_of(whole), rel=1e-6)


# Scores --------------------------------------------------------------------------------------------------------------


def error_of(run):
    module, data = loaded(run)
    rows = np.arange(18)
    made = torch.cat([module.translate(data.sources("val", rows[i : i + 16]), seed=1, start=i) for i in (0, 16)])
    return float((made - data.select("val", rows)).abs().double().mean()) / 2.0  # phantoms are 0 to 1


@pytest.mark.parametrize("run", ["translator_run", "noisy_run"])
def test_score_is_the_error_of_held_out_pairs(request, run):
    run = request.getfixturevalue(run)
    scores = scores_of(run, "score/mean_absolute_error")
    assert list(scores) == [0, 40, 80, 96] and scores[96] < 0.75 * scores[0]
    assert scores[96] == pytest.approx(error_of(run), rel=1e-6)
    row = read_rows(run / "scores.jsonl")[-1]
    assert (row["metric"], row["unit"], row["real"]) == ("mean_absolute_error", "grey level / 255", 18)
    assert state_of(run / "checkpoints" / "best.ckpt")["images_seen"] == min(scores, key=scores.get)


def test_unpaired_translations_are_compared_with_targets_as_sets(unpaired_run):
    rows = read_rows(unpaired_run / "scores.jsonl")
    assert [row["images_seen"] for row in rows] == [0, 40, 80, 96]
    assert {row["generated"] for row in rows} == {18}  # not 2,000: there are no more sources
    assert "of 18 generated images, every 40 images" in (unpaired_run / "log.txt").read_text()
    module, data = loaded(unpaired_run)
    assert (rows[-1]["split"], rows[-1]["sources"]) == ("val", data.source_fingerprint("val"))
    from lightning_modules.metrics.features import RandomConvNet
    from lightning_modules.metrics.torchmetrics_scores import FrechetDistance

    metric, places = FrechetDistance(RandomConvNet()), np.arange(18)
    metric.update(module.translate(data.sources("val", places), seed=1), real=False)
    metric.update(data.select("val", places), real=True)
    assert rows[-1]["value"] == pytest.approx(float(metric.compute()), rel=1e-4)


# Pictures ------------------------------------------------------------------------------------------------------------


def test_grid_shows_source_translation_target_and_difference(translator_run):
    module, data = loaded(translator_run)
    sources, targets = data.sources("val", np.array([0, 4, 9, 13])), data.select("val", np.array([0, 4, 9, 13]))
    made = module.translate(sources)
    grid = pixels(translator_run / "samples" / "images_000000000096.png")
    assert grid.shape == (4 * 34 + 2, 4 * 34 + 2)
    for row in range(4):
        for column, image in enumerate((sources, made, targets, (made - targets) / 2.0)):
            cell = grid[2 + 34 * row : 34 + 34 * row, 2 + 34 * column : 34 + 34 * column]
            np.testing.assert_allclose(cell, (image[row, 0] + 1.0) * 127.5, atol=1.0)
    real = pixels(translator_run / "samples" / "real.png")
    assert np.array_equal(real[:, :34], grid[:, :34]) and np.array_equal(real[:, 34:68], grid[:, 68:102])


def test_grid_of_unpaired_data_shows_no_target(unpaired_run):
    assert pixels(unpaired_run / "samples" / "images_000000000096.png").shape == (4 * 34 + 2, 2 * 34 + 2)


def test_kinds_of_other_channels_share_a_grid(tmp_path):
    grey, colour, two = torch.zeros(2, 1, 32, 32), torch.ones(3, 3, 32, 32), -torch.ones(2, 2, 32, 32)
    colour[:, 1:] = -1.0
    write_rows([grey, colour, two], tmp_path / "grid.png")
    grid = pixels(tmp_path / "grid.png")
    assert grid.shape == (2 * 34 + 2, 3 * 34 + 2, 3)
    assert grid[10, [10, 44, 78]].tolist() == [[128, 128, 128], [255, 0, 0], [0, 0, 0]]


# Health --------------------------------------------------------------------------------------------------------------


def test_health_asks_the_critic_about_held_out_pairs(translator_run):
    """The last measurement is at 96 images; the live generator translates the sources of the held-out pairs."""
    module, data = loaded(translator_run)
    rows = np.arange(16) * 18 // 16
    sources, targets = data.sources("val", rows), data.select("val", rows)
    with torch.no_grad():
        real = torch.cat([module.critic_scores(targets[i : i + 8], sources[i : i + 8]) for i in (0, 8)])
        made = module.unclamped_translation(sources, seed=2, ema=False)
        fake = torch.cat([module.critic_scores(made[i : i + 8], sources[i : i + 8]) for i in (0, 8)])
    signals = json.loads((translator_run / "health.json").read_text())["signals"]
    assert signals["margin"] == pytest.approx(d_prime(real, fake), rel=1e-4)
    assert {"diversity", "precision", "recall", "update", "gradient_ratio", "overfitting"} <= signals.keys()


# What is drawn inside ------------------------------------------------------------------------------------------------


def test_translation_is_a_function_of_seed_place_and_source(noisy_run):
    module, data = loaded(noisy_run)
    sources = data.sources("val", np.arange(5))
    together = module.translate(sources, seed=3, start=10)
    for i in range(5):
        torch.testing.assert_close(module.translate(sources[i : i + 1], seed=3, start=10 + i), together[i : i + 1])
    assert not torch.allclose(module.translate(sources, seed=3, start=11), together)
    noise = sample_noise(5, 3, 10, "cpu")
    torch.testing.assert_close(module.generator_ema.from_sources(sources, noise).clamp(-1.0, 1.0), together)
    with pytest.raises(ValueError, match=r"got images of shape \(1, 2, 32, 32\), expected \(N, 1, 32, 32\)"):
        module.translate(torch.zeros(1, 2, 32, 32))


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "overrides", "said"),
    [
        (
            "translator",
            ["data.paired=false"],
            "data: ToyTranslator needs pairs, and sources and targets of ToyPairs do not belong together",
        ),
        ("translator", ["data.paired=false", "module.needs_pairs=false"], "callbacks: PairedError needs pairs, and"),
        ("translator", ["module.source_channels=2"], "module.source_channels=2: the sources of ToyPairs have 1"),
        ("translator", ["module.source_channels=5"], "source_channels=5: must be 1 to 4"),
        (
            "translator",
            ["callbacks.more._target_=callbacks.sample_grid.SampleGrid"],
            "callbacks.more: SampleGrid needs a family that samples, which ToyTranslator does not; set it to null",
        ),
        (
            "translator",
            ["data._target_=datamodules.phantoms.Phantoms", "data.kind=kidney_ct"],
            "data: ToyTranslator translates, and Phantoms has no sources; take another data set or family",
        ),
        (
            "translator",
            ["callbacks.samples=null", "callbacks.score=null", *CONDITIONAL],
            "data: ToyConditional does not translate, and ToyPairs is of pairs; take another data set or family",
        ),
        (
            "conditional",
            ["callbacks.more._target_=callbacks.translation_grid.TranslationGrid"],
            "TranslationGrid needs a family that translates, which ToyConditional does not",
        ),
        (
            "translator",
            ["data.val_fraction=0.0"],
            "looks at split 'val', which has 0 sources and 0 targets: raise data.val_fraction, or name another split",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, capsys, family, overrides, said):
    code = verb.main(arguments(family, tmp_path, *overrides))
    assert code == 2 and said in capsys.readouterr().err


@pytest.mark.slow
def test_plan_of_a_translator(tmp_path, capsys):
    assert verb.main(["--plan", *arguments("translator", tmp_path), "budget=20s"]) == 0
    assert "32x32" in capsys.readouterr().out
