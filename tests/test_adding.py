"""docs/adding.md: each of its examples is taken from the page, laid into a folder outside the package, and run."""

import json
import re

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from toy_runs import assert_resumes

import callbacks
import datamodules
import experiments.papers
import lightning_modules
import lightning_modules.metrics
from experiments import reproduce
from experiments.configuration import files
from experiments.evaluation.evaluation import evaluate
from experiments.measuring import settings
from experiments.measuring.settings import load_suite
from experiments.papers import study
from experiments.record.tracking import read_rows
from experiments.running.training import train

PAGE = (ROOT / "experiments" / "docs" / "adding.md").read_text()
EXAMPLES = dict(re.findall(r"```(?:python|yaml)\n# ([\w/.]+)\n(.*?)```", PAGE, flags=re.DOTALL))


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """The examples of the page in a folder of the project's shape; packages look there too."""
    folder = tmp_path_factory.mktemp("outside")
    for name, text in EXAMPLES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    packages = (lightning_modules, lightning_modules.metrics, datamodules, callbacks, experiments.papers)
    for package in packages:
        package.__path__.append(str(folder / package.__name__.replace(".", "/")))
    yield folder
    for package in packages:
        package.__path__.pop()


SMALL = (
    "tracking=disabled",
    "schedule.total_images=32",
    "trainer.accelerator=cpu",
    "module.channels=4",
    "callbacks.score=null",
    "callbacks.health=null",
    "callbacks.samples.every_images=16",
    "callbacks.losses.every_images=8",
    "callbacks.brightness.every_images=16",
    "callbacks.checkpoint.every_images=8",
    "callbacks.checkpoint.keep=10",
)


def trained(outside, films, folder, *overrides):
    where = [f"data.root={films}", f"data.cache_dir={films.parent / 'cache'}", f"runs_dir={folder / 'runs'}"]
    name = str(outside / "experiments" / "configs" / "lsgan_films_32.yaml")
    return train(files.load(name, [*SMALL, *where, *overrides]))


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "films"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i in range(60):
        Image.fromarray(draw.integers(0, 256, (40, 40), dtype=np.uint8)).save(folder / f"p{i // 2:02d}_{i % 2}.png")
    return folder


@pytest.fixture(scope="module")
def run(outside, films, tmp_path_factory):
    """A run of the family on the data set, watched by the callback."""
    return trained(outside, films, tmp_path_factory.mktemp("run"))


def test_page_has_an_example_of_each_kind():
    assert sorted({name.split("/")[0] for name in EXAMPLES}) == sorted(
        ["callbacks", "datamodules", "experiments", "lightning_modules"]
    )


def test_family_data_set_and_callback_train_and_resume(run, outside, films, tmp_path):
    rows = read_rows(run / "metrics.jsonl")
    assert [row["images_seen"] for row in rows if "samples/brightness" in row] == [16, 32]
    assert any("loss/generator/adversarial" in row for row in rows) and (run / "report.html").exists()
    assert_resumes(run, tmp_path, lambda resume: trained(outside, films, tmp_path, resume), 16)


def test_metric_scores_in_a_suite(run):
    node = "scores.centre_distance._target_=lightning_modules.metrics.centre_distance.CentreDistance"
    only = [f"scores.{name}=null" for name in files.load("quick", folder=files.SUITES)["scores"]]
    overrides = [*only, node, "images=48", "replicates=10", "extractors.efficientnet_lite0=null", "device=cpu"]
    folder = evaluate(str(run), load_suite("quick", overrides))
    (row,) = json.loads((folder / "scores.json").read_text())["scores"]
    assert row["name"] == "centre_distance_random_conv" and 0 < row["low"] <= row["high"]


def test_paper_is_planned_and_its_section_escapes(outside, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "PAPERS", outside / "experiments" / "configs" / "papers")
    monkeypatch.setattr(settings, "SUITES", outside / "experiments" / "configs" / "suites")
    given = ["toy2026", "scale=smoke", f"runs_dir={tmp_path}"]
    assert reproduce.main([*given, "--commands"]) == 0
    assert capsys.readouterr().out.count("-m experiments.run") == 2
    assert reproduce.main([*given, "--collect"]) == 2
    assert "none of its 2 runs has finished" in capsys.readouterr().err
    from experiments.papers import toy2026

    assert "<td>&lt;b&gt;</td>" in toy2026.rows_section(["<b>"])
