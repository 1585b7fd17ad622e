"""``experiments.translate``: a file for each file, the same bytes whoever makes it."""

import csv
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, cut_in_half
from PIL import Image
from pydicom import dcmread
from toy_runs import trained
from toys.toy_pairs import source_of

from datamodules.phantoms import Phantoms
from datamodules.writing.writers import NOTICE_OF_TRANSLATION
from experiments import translate
from experiments.configuration.errors import ConfigError
from experiments.configuration.experiment import experiment_of
from experiments.evaluation.evaluation import evaluate
from experiments.evaluation.slices import check_slices
from experiments.evaluation.subject import real_data, sets_of, subject_of
from experiments.measuring.settings import build_tools, load_suite
from experiments.publishing import translating
from experiments.publishing.generating import Request as ToGenerate
from experiments.publishing.generating import generate_files
from experiments.publishing.translating import Maker, Request, translate_files
from experiments.record.loading import data_of, load_trained
from experiments.record.run_directory import recorded_config
from lightning_modules.metrics.features import RandomConvNet
from lightning_modules.metrics.torchmetrics_scores import FrechetDistance
from lightning_modules.protocols import Translates

SIZES = {"a.png": (32, 32), "b/c.png": (24, 40), "b/d.jpg": (32, 32)}
UNPAIRED = ["data.paired=false", "module.needs_pairs=false", "callbacks.score=null"]
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
        assert written.text["Synthetic"] == "yes" and written.text["Comment"] == NOTICE_OF_TRANSLATION


def test_manifest_says_what_was_made_of_what(translator_run, sources, tmp_path):
    folder = translate_files(Request(translator_run, sources, tmp_path / "out", seed=4)).folder
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["source"] for row in rows] == list(SIZES) and [row["seed"] for row in rows] == ["4"] * 3
    for row in rows:
        assert row["sha256"] == hashlib.sha256((folder / row["file"]).read_bytes()).hexdigest()
        assert row["source_sha256"] == hashlib.sha256((sources / row["source"]).read_bytes()).hexdigest()
    said = json.loads((folder / "manifest.json").read_text())
    assert said["notice"] == NOTICE_OF_TRANSLATION and said["value_range"] is None and said["reading"] == ""
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
    assert (dataset.Rows, dataset.Columns) == (24, 40) and dataset.ImageComments.startswith(NOTICE_OF_TRANSLATION)
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
        (lambda folder: (folder / "b/d.PNG").write_bytes(b"x"), [], "b/d.PNG and b/d.jpg: both would be written as"),
        (
            lambda folder: (folder / "b/c.png").write_bytes(b"no picture"),
            [],
            "1 of 3 images cannot be read, e.g. c.png: is none of PNG, JPEG, TIFF and BMP",
        ),
        (
            lambda folder: Image.new("RGB", (32, 32), "red").save(folder / "b/d.jpg"),
            [],
            "1 of 3 images cannot be read, e.g. d.jpg: is a colour image",
        ),
        (
            lambda folder: Image.fromarray(np.full((8, 8), 9, np.uint16)).save(folder / "z.png"),
            [],
            "z.png: has 16 bits with values 9 .. 9, and does not say which of them are black and white; set "
            "--value-range, e.g. --value-range 0 4095",
        ),
        (lambda folder: None, ["--value-range", "5", "5"], "--value-range: LOW must be below HIGH"),
        (lambda folder: None, ["--value-range", "0", "inf"], "HIGH, and both finite"),  # all would be black
        (
            lambda folder: (folder / "b").rename(folder / "A.PNG"),
            [],
            "A.PNG/c.png: a file is to be written as A.PNG, too; rename the folder",
        ),
        (
            lambda folder: (folder / "b").rename(folder / "manifest.csv"),
            [],
            "manifest.csv/c.png: a file is to be written as manifest.csv, too; rename the folder",
        ),
        (
            lambda folder: None,
            ["--output", "INSIDE"],
            "lies in the folder of the sources, or",
        ),
    ],
)
def test_what_cannot_be_translated_is_refused(translator_run, sources, tmp_path, capsys, change, more, said):
    change(sources)
    before = contents(sources)
    more = [str(sources / "out") if text == "INSIDE" else text for text in more]
    assert command(translator_run, sources, tmp_path / "out", *more) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and contents(sources) == before


def test_output_in_the_run_directory_is_refused(translator_run, sources, capsys):
    """A run directory names no patient, and can be handed on."""
    assert command(translator_run, sources, translator_run / "translated") == 2
    assert "lies in the run directory, which can be handed on" in capsys.readouterr().err
    assert not (translator_run / "translated").exists()


def test_source_that_changes_in_between_is_not_taken_for_another(translator_run, sources, tmp_path, capsys):
    class Later(Maker):
        def check(self):
            super().check()
            Image.new("L", (32, 32), 7).save(sources / "b" / "d.png")
            (sources / "b" / "d.png").replace(sources / "b" / "d.jpg")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(translating, "Maker", Later)
        assert command(translator_run, sources, tmp_path / "out") == 2
    assert "b/d.jpg: has changed while the folder was translated; begin anew" in capsys.readouterr().err
    assert not (tmp_path / "out" / "b" / "d.png").exists()


def test_source_that_was_replaced_with_its_time_kept_is_read_anew(translator_run, tmp_path):
    """What other verbs remember of a file by size and time is not trusted."""
    folder, picture = tmp_path / "sources", tmp_path / "sources" / "x.bmp"
    folder.mkdir()
    for grey, output in ((10, "first"), (240, "second")):
        Image.new("L", (32, 32), grey).save(picture)
        os.utime(picture, (1_000_000_000, 1_000_000_000))
        assert command(translator_run, folder, tmp_path / output) == 0
    assert contents(tmp_path / "first") != contents(tmp_path / "second")


def test_names_of_any_kind_reach_the_table(translator_run, tmp_path):
    folder = tmp_path / "sources"
    folder.mkdir()
    odd = [b"=1+1.png", b"\xff.png", "µ, ö.png".encode()]
    for name in odd:
        Image.new("L", (32, 32), 7).save(folder / os.fsdecode(name))
    out = translate_files(Request(translator_run, folder, tmp_path / "out")).folder
    with (out / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["source"] for row in rows] == ["'=1+1.png", "µ, ö.png", " .png"]
    assert {os.fsencode(path.name) for path in out.glob("*.png")} == set(odd)
    assert translate_files(Request(translator_run, folder, tmp_path / "out")).made == 0


def test_folder_of_other_translations_is_refused(translator_run, sources, tmp_path, capsys):
    assert command(translator_run, sources, tmp_path / "out") == 0
    Image.new("L", (32, 32), 7).save(sources / "e.png")
    assert command(translator_run, sources, tmp_path / "out") == 2
    assert "holds other images; name another --output" in (err := capsys.readouterr().err) and "sources_sha256" in err


def refuses_upright(images):
    if images.shape[2] > images.shape[3]:
        raise RuntimeError("sides must\nbe even")
    return images


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refuses_upright, "cannot take 40x24 (sides must be even)"),
        (lambda images: images[..., :32, :32], "makes 32x24 of 40x24: it cannot take this size"),
    ],
)
def test_size_that_the_network_cannot_take_is_told(
    translator_run, sources, tmp_path, capsys, monkeypatch, answer, said
):
    from lightning_modules.toy_translator import Generator

    Image.new("L", (24, 40), 7).save(sources / "e.png")
    (sources / "b" / "c.png").unlink()
    monkeypatch.setattr(Generator, "from_sources", lambda self, images, noise=None: answer(images))
    assert command(translator_run, sources, tmp_path / "out") == 2
    assert f"e.png: the translator, trained at 32x32 pixels, {said}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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


def data_of_run(run):
    return data_of(experiment_of(recorded_config(run)))


def sets_of_run(run, *overrides):
    subject, suite = subject_of(run, torch.device("cpu")), load_suite("quick", [*QUICK, *overrides])
    return sets_of(suite, subject, real_data(suite, subject))


def scores_of(folder):
    said = json.loads((folder / "scores.json").read_text())
    return {row["score"]: row for row in said["scores"]}, said


def test_translations_are_compared_with_the_targets_of_their_sources(translator_run):
    folder = evaluate(str(translator_run), load_suite("quick", [*QUICK, "images=100", "split=val"]))
    scores, _ = scores_of(folder)
    module, data = load_trained(translator_run, "cpu", Translates).module, data_of_run(translator_run)
    places = np.arange(18)
    metric = FrechetDistance(RandomConvNet())
    metric.update(((module.translate(data.sources("val", places)) + 1.0) * 127.5).round() / 127.5 - 1.0, real=False)
    metric.update(data.select("val", places), real=True)
    assert scores["frechet"]["value"] == pytest.approx(float(metric.compute()), rel=1e-3)
    page = (folder / "report.html").read_text()
    # What is near to training images says nothing of a translator.
    assert scores["copies"]["refused"] == "needs training images and held-out real images, and there are none"
    assert "of the sources of val" in page and "the translator was trained on these sources" not in page


def test_a_translation_is_its_sources_patients(translator_run, monkeypatch):
    """Of pairs it goes with the target in halves and slices."""
    from lightning_modules.toy_translator import Generator

    monkeypatch.setattr(Phantoms, "attributes", lambda self, record: {"side": "LR"[int(record.name[-1]) % 2]})
    monkeypatch.setattr(Generator, "from_sources", lambda self, images, noise=None: images)
    sets = sets_of_run(translator_run, "by=side", "split=val")
    assert len(sets.generated) == 16 and sets.generated.groups == sets.real.groups
    assert sets.generated.about == sets.real.about and {one["side"] for one in sets.real.about} == {"L", "R"}
    expected = source_of(sets.real.read(3, 16))
    assert (sets.generated.read(3, 16) - expected).abs().max() <= 0.51 / 127.5  # of 8 bits
    suite = load_suite("quick", [*QUICK, "by=side"])
    assert check_slices(suite, build_tools(suite), sets) == []


def test_identity_follows_weights_sources_and_seed(translator_run, monkeypatch):
    said = sets_of_run(translator_run, "split=val").generated.identity()
    assert said["weights_sha256"] == load_trained(translator_run, "cpu", Translates).weights_sha256
    assert said["sources"] == data_of_run(translator_run).source_fingerprint("val")
    assert sets_of_run(translator_run, "split=val").generated.identity() == said
    assert sets_of_run(translator_run, "split=val", "seed=2").generated.identity() != said


def test_sources_without_pairs_have_their_own_order(tmp_path):
    run = trained("translator", tmp_path, *UNPAIRED)
    sets = sets_of_run(run, "split=val", "images=12")
    indices = sets.generated.indices
    assert len(set(indices.tolist())) == 12 and len(set(sets.generated.groups)) == 12 and not sets.generated.about
    assert indices.tolist() != [index for _, index in sets.real.places]
    module, sources = load_trained(run, "cpu", Translates).module, data_of_run(run).sources("val", indices)
    assert (sets.generated.read(0, 12) - module.translate(sources)).abs().max() <= 0.51 / 127.5


def test_split_without_sources_is_refused(tmp_path, monkeypatch):
    from datamodules.toy_pairs import ToyPairs

    run = trained("translator", tmp_path, *UNPAIRED)
    monkeypatch.setattr(ToyPairs, "source_size", lambda self, split: 0)
    with pytest.raises(ConfigError, match="split=val: the split has no sources; name another"):
        sets_of_run(run, "split=val")


def test_images_that_the_network_cannot_take_are_refused(translator_run, monkeypatch):
    from lightning_modules.toy_translator import Generator

    def refuse(self, images, noise=None):
        raise RuntimeError("sides must\nbe even")

    monkeypatch.setattr(Generator, "from_sources", refuse)
    with pytest.raises(ConfigError, match=r"\(ToyTranslator\), 96 images seen, .*: sides must be even$"):
        sets_of_run(translator_run, "split=val")


def test_training_pairs_are_warned_of(translator_run, caplog):
    folder = evaluate(str(translator_run), load_suite("quick", QUICK))
    said = "the translator was trained on these sources: split=val or test shows what it does to new ones"
    assert said in caplog.text and said in (folder / "report.html").read_text()
    same = ["against=" + str(ROOT / "tests" / "tiny_translator.yaml")]  # called otherwise
    assert said in sets_of_run(translator_run, *same).warnings
    assert said not in sets_of_run(translator_run, *same, "data.count=50").warnings


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["truncation=0.5"], "truncation=0.5: a translator has no latents to truncate"),
        (
            ["against=FOLDER"],
            "sources: a folder holds no sources; translate images with python -m experiments.translate",
        ),
        (["suite=privacy"], "a translation resembles the target of its source, and is that patient's data"),
        (["against=TINY"], r"tiny\.yaml: Phantoms holds no sources; translate images with"),
        (["generated_labels=x.csv", "by=view"], "generated_labels: these are for a folder that is evaluated"),
        (["data.paired=false"], r"the data is not what the run was trained on \(source: was .*; paired: was True, is "),
    ],
)
def test_what_a_translator_cannot_be_asked_is_refused(translator_run, sources, overrides, said):
    places = {"FOLDER": str(sources), "TINY": str(ROOT / "tests" / "tiny.yaml")}
    overrides = [
        key + sign + places.get(value, value) for key, sign, value in (text.partition("=") for text in overrides)
    ]
    suite, overrides = ("privacy", []) if overrides == ["suite=privacy"] else ("quick", [*QUICK, *overrides])
    with pytest.raises(ConfigError, match=said):
        evaluate(str(translator_run), load_suite(suite, overrides))
