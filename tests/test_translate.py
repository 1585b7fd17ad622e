"""``experiments.translate``: a file for each file, the same bytes whoever makes it."""

import csv
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, cut_in_half
from PIL import Image
from pydicom import dcmread
from toy_runs import trained

from experiments import translate
from experiments.evaluation.evaluation import evaluate
from experiments.evaluation.settings import load_suite
from experiments.generation import Request as ToGenerate
from experiments.generation import generate_files
from experiments.loading import load_trained
from experiments.translating import Request, translate_files
from lightning_modules.protocols import Translates

SIZES = {"a.png": (32, 32), "b/c.png": (24, 40), "b/d.jpg": (32, 32)}
QUICK = ["images=16", "replicates=10", "extractors.efficientnet_lite0=null"]


@pytest.fixture
def sources(tmp_path):
    random = np.random.default_rng(0)
    folder = tmp_path / "sources"
    (folder / "b").mkdir(parents=True)
    for name, (height, width) in SIZES.items():
        Image.fromarray(random.integers(0, 256, (height, width), dtype=np.uint8)).save(folder / name)
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


def command(run, sources, output, *more):
    return translate.main([str(run), str(sources), "--output", str(output), *more])


def test_each_file_is_translated_at_its_own_size(translator_run, sources, tmp_path, capsys):
    assert command(translator_run, sources, tmp_path / "out") == 0
    assert "3 images made now, all are in" in capsys.readouterr().out
    module = load_trained(translator_run, "cpu", Translates).module
    for name in SIZES:
        source = torch.from_numpy(np.asarray(Image.open(sources / name)).astype(np.float32)) / 127.5 - 1.0
        expected = module.generator_ema.from_sources(source[None, None]).clamp(-1.0, 1.0)
        written = Image.open((tmp_path / "out" / name).with_suffix(".png"))
        np.testing.assert_array_equal(np.asarray(written), ((expected[0, 0] + 1.0) * 127.5).round().byte())
        assert written.text["Synthetic"] == "yes"


def test_manifest_says_what_was_made_of_what(translator_run, sources, tmp_path):
    folder = translate_files(Request(translator_run, sources, tmp_path / "out", seed=4)).folder
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["source"] for row in rows] == list(SIZES) and [row["seed"] for row in rows] == ["4"] * 3
    for row in rows:
        assert row["sha256"] == hashlib.sha256((folder / row["file"]).read_bytes()).hexdigest()
        assert row["source_sha256"] == hashlib.sha256((sources / row["source"]).read_bytes()).hexdigest()
    said = json.loads((folder / "manifest.json").read_text())
    assert said["synthetic"] is True and said["family"] == "ToyTranslator" and said["count"] == 3


def test_what_is_missing_or_damaged_is_made_again(translator_run, sources, tmp_path):
    first = translate_files(Request(translator_run, sources, tmp_path / "out"))
    whole = contents(first.folder)
    (first.folder / "a.png").unlink()
    cut_in_half(first.folder / "b" / "d.png")
    again = translate_files(Request(translator_run, sources, tmp_path / "out"))
    assert (first.made, again.made) == (3, 2) and contents(again.folder) == whole


def test_stop_leaves_the_rest_for_later(translator_run, sources, tmp_path):
    answers = iter([False, False, True, True])
    first = translate_files(Request(translator_run, sources, tmp_path / "out"), lambda: next(answers))
    assert (first.made, first.missing) == (1, 2)
    second = translate_files(Request(translator_run, sources, tmp_path / "out"))
    assert (second.made, second.missing) == (2, 0)


def test_noise_of_a_file_is_its_own(sources, tmp_path):
    run = trained("translator", tmp_path, "name=noisy", "module.noisy=true")
    one, two = (translate_files(Request(run, sources, tmp_path / f"seed{seed}", seed=seed)).folder for seed in (0, 1))
    assert all(contents(one)[name] != contents(two)[name] for name in contents(one))
    (one / "b" / "c.png").unlink()
    before = contents(one)
    translate_files(Request(run, sources, tmp_path / "seed0", seed=0))
    assert contents(one) != before and before.items() <= contents(one).items()


@pytest.mark.slow
def test_number_of_processes_changes_no_byte(translator_run, sources, tmp_path):
    random = np.random.default_rng(1)
    for i in range(40):  # two processes are begun for more than one task of 16 files
        Image.fromarray(random.integers(0, 256, (32, 32), dtype=np.uint8)).save(sources / f"{i}.png")
    alone = translate_files(Request(translator_run, sources, tmp_path / "alone")).folder
    script = [sys.executable, ROOT / "tests" / "toy_translate.py", translator_run, sources]
    done = subprocess.run([*script, "--output", tmp_path / "two", "--processes", "2"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "two") == contents(alone) and len(contents(alone)) == 43


def test_dicom_says_that_it_is_synthetic_and_names_no_source(translator_run, sources, tmp_path):
    folder = translate_files(Request(translator_run, sources, tmp_path / "out", format="dicom")).folder
    content = (folder / "b" / "c.dcm").read_bytes()
    dataset = dcmread(folder / "b" / "c.dcm")
    assert (dataset.Rows, dataset.Columns) == (24, 40) and "translated from another image" in str(dataset)
    assert b"c.png" not in content and str(sources).encode() not in content


def test_declared_range_of_16_bits(translator_run, tmp_path, capsys):
    deep = tmp_path / "deep"
    deep.mkdir()
    values = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 4
    Image.fromarray(values).save(deep / "x.png")
    assert command(translator_run, deep, tmp_path / "out") == 2
    assert "x.png: has 16 bits with values 0 .. 4092, and does not say" in capsys.readouterr().err
    assert command(translator_run, deep, tmp_path / "out", "--value-range", "0", "4095") == 0
    module = load_trained(translator_run, "cpu", Translates).module
    source = torch.from_numpy(values.astype(np.float32)) / 4095 * 2.0 - 1.0
    expected = (module.translate(source[None, None])[0, 0] + 1.0) * 127.5
    np.testing.assert_allclose(np.asarray(Image.open(tmp_path / "out" / "x.png")), expected, atol=0.51)


@pytest.mark.parametrize(
    ("change", "more", "said"),
    [
        (lambda folder: [path.unlink() for path in folder.rglob("*.*g")], [], "sources: holds no image ("),
        (lambda folder: (folder / "a.jpg").write_bytes((folder / "b/d.jpg").read_bytes()), [], "a.jpg and a.png: both"),
        (
            lambda folder: (folder / "b/c.png").write_bytes(b"no picture"),
            [],
            "1 of 3 images cannot be read, e.g.",
        ),
        (lambda folder: Image.new("RGB", (32, 32), "red").save(folder / "a.png"), [], "a.png"),
        (lambda folder: None, ["--value-range", "5", "5"], "--value-range: LOW must be below HIGH"),
        (
            lambda folder: None,
            ["--output", "INSIDE"],
            "lies in the folder of the sources, or",
        ),
    ],
)
def test_what_cannot_be_translated_is_refused(translator_run, sources, tmp_path, capsys, change, more, said):
    change(sources)
    more = [str(sources / "out") if text == "INSIDE" else text for text in more]
    assert command(translator_run, sources, tmp_path / "out", *more) == 2
    assert said in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.png"))


def test_folder_of_other_translations_is_refused(translator_run, sources, tmp_path, capsys):
    assert command(translator_run, sources, tmp_path / "out") == 0
    Image.new("L", (32, 32), 7).save(sources / "e.png")
    assert command(translator_run, sources, tmp_path / "out") == 2
    assert "holds other images; name another --output" in (err := capsys.readouterr().err) and "sources_sha256" in err


def test_size_that_the_network_refuses_is_told(translator_run, sources, tmp_path, capsys, monkeypatch):
    from lightning_modules.toy_translator import Generator

    def halves(self, images, noise=None):
        raise RuntimeError("sides must be even")

    monkeypatch.setattr(Generator, "from_sources", halves)
    assert command(translator_run, sources, tmp_path / "out") == 2
    assert "a.png: 32x32 pixels cannot be translated (sides must be even)" in capsys.readouterr().err


def test_each_verb_names_the_other(translator_run, sources, tmp_path, capsys):
    from experiments import generate

    assert generate.main([str(translator_run), "--count", "1"]) == 2
    assert "no images from latents; python -m experiments.translate translates images with" in capsys.readouterr().err
    run = trained("conditional", tmp_path, "schedule.total_images=8")
    assert command(run, sources, tmp_path / "out") == 2
    said = "ToyConditional translates no images; python -m experiments.generate makes images with it"
    assert said in capsys.readouterr().err
    assert len(list(generate_files(ToGenerate(run, 2, output=tmp_path / "made")).folder.glob("*.png"))) == 2


# Evaluating ----------------------------------------------------------------------------------------------------------


def scores_of(folder):
    said = json.loads((folder / "scores.json").read_text())
    return {row["score"]: row for row in said["scores"]}, said


def test_translations_are_compared_with_the_targets_of_their_sources(translator_run):
    from experiments.config import experiment
    from experiments.loading import data_of
    from experiments.run_directory import recorded_config
    from lightning_modules.metrics.features import RandomConvNet
    from lightning_modules.metrics.torchmetrics_scores import FrechetDistance

    folder = evaluate(str(translator_run), load_suite("quick", [*QUICK, "images=100", "split=val"]))
    scores, _ = scores_of(folder)
    module, data = (
        load_trained(translator_run, "cpu", Translates).module,
        data_of(experiment(recorded_config(translator_run))),
    )
    places = np.arange(18)
    metric = FrechetDistance(RandomConvNet())
    metric.update(((module.translate(data.sources("val", places)) + 1.0) * 127.5).round() / 127.5 - 1.0, real=False)
    metric.update(data.select("val", places), real=True)
    assert scores["frechet"]["value"] == pytest.approx(float(metric.compute()), rel=1e-3)
    page = (folder / "report.html").read_text()
    # What is near to training images says nothing of a translator.
    assert scores["copies"]["refused"] == "needs training images and held-out real images, and there are none"
    assert "of the sources of val" in page and "the translator was trained on these sources" not in page


def test_training_pairs_are_warned_of(translator_run, caplog):
    folder = evaluate(str(translator_run), load_suite("quick", QUICK))
    said = "the translator was trained on these sources: split=val or test shows what it does to new ones"
    assert said in caplog.text and said in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["truncation=0.5"], "truncation=0.5: a translator has no latents to truncate"),
        (["suite=privacy"], "a translation resembles the target of its source, and is that patient's data"),
        (["against=FOLDER"], "holds no sources for a translator; translate images with"),
    ],
)
def test_what_a_translator_cannot_be_asked_is_refused(translator_run, sources, overrides, said):
    from experiments.config import ConfigError

    overrides = [text.replace("FOLDER", str(sources)) for text in overrides]
    (sources / "b" / "c.png").unlink()  # of another shape than the others
    suite, overrides = ("privacy", []) if overrides == ["suite=privacy"] else ("quick", [*QUICK, *overrides])
    with pytest.raises(ConfigError, match=said):
        evaluate(str(translator_run), load_suite(suite, overrides))
