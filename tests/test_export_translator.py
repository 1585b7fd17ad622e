"""Translators are handed on with an image as input."""

import json
import os
import shutil

import pytest
import torch
from conftest import ROOT, newest_checkpoint
from toy_runs import state_of, trained

from experiments.configuration.errors import ConfigError
from experiments.publishing.exporting import export
from experiments.record.loading import load_trained, translated
from lightning_modules.networks import exported
from lightning_modules.networks.exported import ExportError
from lightning_modules.protocols import Translates

NAME = "lightning_modules.toy_translator.Generator"


@pytest.fixture(autouse=True)
def toy_is_known(monkeypatch, translator_run):
    from lightning_modules.toy_translator import Generator

    monkeypatch.setattr(exported, "TRANSLATORS", {NAME: Generator})


@pytest.fixture
def folder(translator_run, tmp_path):
    return export(translator_run, tmp_path / "export", with_onnx=False)


def sources(*sizes):
    return [torch.rand(1, *size, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i, size in enumerate(sizes)]


def change(folder, what):
    path = folder / "generator.json"
    said = json.loads(path.read_text())
    what(said)
    path.write_text(json.dumps(said))


@pytest.mark.parametrize("more", [[], ["name=noisy", "module.noisy=true"]])
def test_export_makes_the_images_of_the_run(tmp_path, more):
    run = trained("translator", tmp_path, *more, "schedule.total_images=16")
    loaded = exported.load_translator(export(run, tmp_path / "export", with_onnx=False))
    images = sources((32, 32), (32, 32), (32, 32))
    expected = list(translated(load_trained(run, "cpu", Translates).module, images, seed=5, start=7))
    assert torch.equal(loaded.translate(torch.stack(images), seed=5, start=7), torch.stack(expected))
    (wide,) = sources((24, 40))
    assert loaded.translate(wide[None]).shape == (1, 1, 24, 40)


def test_what_is_handed_on(folder):
    assert {path.name for path in folder.iterdir()} == {"README.md", "generator.json", "generator.safetensors"}
    said = json.loads((folder / "generator.json").read_text())
    intensity = said["source"].pop("intensity")
    assert said["format"] == 3 and said["source"] == {"channels": 1, "low": -1.0, "high": 1.0}
    assert (intensity["low"], intensity["high"], intensity["meaning"]) == (0.0, 1.0, "phantom inverted and darkened")
    assert said["paired"] is True and said["notice"].endswith("from another image; may show that one's patient.")
    assert said["network"]["class"] == NAME and said["family"] == "ToyTranslator"
    for path in folder.iterdir():
        for private in (str(ROOT), os.environ["MIRAGE_CACHE"], os.environ["MIRAGE_PRIVATE"], "/tmp", "/root", "/home"):
            assert private.encode() not in path.read_bytes(), (path.name, private)


def test_card_says_what_goes_in_and_what_cannot_be_trusted(folder):
    card = (folder / "README.md").read_text()
    for said in (
        ": a translator of images",
        "made of an image of a patient: it is that patient's data",
        "No samples are shown: they would be made of patients' images.",
        "| values of the sources | -1 is 0, 1 is 1 grey level / 255 (phantom inverted and darkened) |",
        "| trained on pairs | yes |",
        "| noise | none |",
        "| split | targets | groups | fingerprint | fingerprint of the sources |",
        "Not assessed: a translation shows the patient of its source",
        "What the targets of training seldom show may be removed",
        "| metric | mean_absolute_error |",
        "| unit | grey level / 255 |",
    ):
        assert said in card, said
    assert "latents" not in card and "samples.png" not in card and "| extractor |" not in card
    python = card.partition("```python\n")[2].partition("```")[0].replace("FOLDER", str(folder))
    scope: dict = {}
    exec(python, scope)
    assert torch.equal(scope["sources"], torch.full((4, 1, 32, 32), -1.0))  # of the lowest value
    assert torch.equal(scope["images"], exported.load_translator(folder).translate(scope["sources"]))
    torch.testing.assert_close(scope["values"], (scope["images"] + 1.0) / 2.0)


def test_card_of_other_translators(tmp_path):
    """A noisy one, without scores, of sources of which nothing is known."""
    run = trained("translator", tmp_path, "module.noisy=true", "schedule.total_images=8", "callbacks.score=null")
    checkpoint = newest_checkpoint(run)
    content = state_of(checkpoint)
    content["data_facts"]["source"] = None
    del content["data_facts"]["paired"]
    torch.save(content, checkpoint)
    card = (export(checkpoint, tmp_path / "export", with_onnx=False) / "README.md").read_text()
    assert "| values of the sources | not recorded |" in card and "| trained on pairs | not recorded |" in card
    assert "| noise | drawn inside: a function of seed and place in the list |" in card
    assert "sources = torch.zeros(4, 1, 32, 32)  # yours, in -1 to 1" in card and "Scores: not recorded." in card
    with pytest.raises(ConfigError, match="draws random numbers inside, which ONNX cannot: leave it out"):
        export(checkpoint, tmp_path / "onnx")


def test_card_speaks_of_truncation_where_there_are_latents(translator_run, tmp_path):
    run = shutil.copytree(translator_run, tmp_path / "run")
    for name, generated in (("translated", {"seed": 3}), ("generated", {"seed": 4, "truncation": 0.5})):
        (run / "evaluation" / name).mkdir(parents=True)
        (run / "evaluation" / name / "scores.json").write_text(json.dumps({"generated": generated, "scores": []}))
    card = (export(run, tmp_path / "export", with_onnx=False) / "README.md").read_text()
    assert "| their seed | 4 |\n| truncation | 0.5 |\n" in card
    assert "| their seed | 3 |\n| real images, groups |" in card


@pytest.mark.slow
def test_onnx_takes_images(translator_run, tmp_path):
    import onnxruntime

    folder = export(translator_run, tmp_path / "export")
    content = (folder / "generator.onnx").read_bytes()
    assert b"may show that one's patient" in content and b"not a patient" not in content
    session = onnxruntime.InferenceSession(content)
    for count in (1, 2, 5):
        batch = torch.stack(sources(*[(32, 32)] * count))
        (images,) = session.run(["images"], {"sources": batch.numpy()})
        expected = exported.load_translator(folder).translate(batch)
        torch.testing.assert_close(torch.from_numpy(images), expected, atol=1e-4, rtol=0)
    card = (folder / "README.md").read_text()
    assert "without Mirage and torch, for images of 32 x 32 pixels" in card
    scope: dict = {}
    exec(card.split("```python\n")[2].partition("```")[0].replace("FOLDER", str(folder)), scope)
    assert scope["images"].shape == (4, 1, 32, 32)


@pytest.mark.parametrize("form", ["monai-bundle", "medigan"])
def test_forms_of_generators_are_refused(translator_run, tmp_path, form):
    with pytest.raises(ConfigError, match=f"--format {form}: holds generators from latents, and this is a translator"):
        export(translator_run, tmp_path / "export", with_onnx=False, form=form)
    assert not (tmp_path / "export").exists()


def test_privacy_cannot_be_required(translator_run, tmp_path):
    with pytest.raises(ConfigError, match=r"--require-privacy: .* a translation shows the patient of its source"):
        export(translator_run, tmp_path / "export", with_onnx=False, require_privacy=True)
    assert not (tmp_path / "export").exists()


def test_samples_of_an_earlier_export_do_not_stay(translator_run, tmp_path):
    folder = export(translator_run, tmp_path / "export", with_onnx=False)
    (folder / "samples.png").write_bytes(b"of a generator")
    export(translator_run, folder, with_onnx=False)
    assert not (folder / "samples.png").exists()


def test_weights_that_cannot_be_loaded_are_not_exported(translator_run, tmp_path):
    """Of the way back, too, which no translation shows."""
    run = shutil.copytree(translator_run, tmp_path / "run")
    content = state_of(newest_checkpoint(run))
    content["state_dict"]["generator_ema.back.0.bias"][0] = float("nan")
    torch.save(content, newest_checkpoint(run))
    with pytest.raises(ConfigError, match="not finite"):
        export(run, tmp_path / "export", with_onnx=False)
    assert not (tmp_path / "export").exists()


def test_each_loader_names_the_other(folder, tmp_path):
    with pytest.raises(ExportError, match="describes a translator; load it with load_translator"):
        exported.load_generator(folder)
    run = trained("conditional", tmp_path, "schedule.total_images=8")
    from lightning_modules.toy_conditional import Generator

    exported.GENERATORS["lightning_modules.toy_conditional.Generator"] = Generator
    try:
        generator = export(run, tmp_path / "generator", with_onnx=False)
    finally:
        del exported.GENERATORS["lightning_modules.toy_conditional.Generator"]
    with pytest.raises(ExportError, match="describes a generator; load it with load_generator"):
        exported.load_translator(generator)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda said: said.update(format=4), "has format 4, this version reads 1, 2, 3"),
        (lambda said: said["network"].update({"class": "os.system"}), "network 'os.system' is none of lightning_mod"),
        (lambda said: said["network"]["arguments"].update(image_size=[10**6, 10**6]), "sides are 1 to"),
        (lambda said: said["network"]["arguments"].update(source_channels=2), "holds other weights than the network"),
        (lambda said: said["network"]["arguments"].update(source_channels=10**9), "images have 1 to 4 channels"),
        (lambda said: said["network"]["arguments"].update(image_channels=0), "images have 1 to 4 channels"),
        (lambda said: said["files"].update({"generator.safetensors": "0" * 64}), "is not the file that generator.json"),
        (lambda said: said["files"].clear(), "is no exported network"),
        (lambda said: said.pop("network"), "is no exported network"),
    ],
)
def test_a_strangers_folder_is_checked(folder, what, said):
    change(folder, what)
    with pytest.raises(ExportError, match=said):
        exported.load_translator(folder)


def test_sources_of_other_channels_are_refused(folder):
    loaded = exported.load_translator(folder)
    with pytest.raises(ValueError, match=r"got images of shape \(1, 3, 8, 8\), expected \(N, 1, 8, 8\)"):
        loaded.translate(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="no sources were given"):
        loaded.translate(torch.zeros(0, 1, 8, 8))


def test_network_that_is_not_registered_is_refused(translator_run, tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "TRANSLATORS", {})
    with pytest.raises(ConfigError, match=r"cannot be exported; give it ``arguments`` and add it to exported.TRANSLAT"):
        export(translator_run, tmp_path / "export", with_onnx=False)


# The sources in the checkpoint ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda facts: facts["source"].update(channels=9), "data_facts.source.channels"),
        (lambda facts: facts["source"]["intensity"].update(low=2.0), "low must lie below high"),
        (lambda facts: facts["source"].pop("fingerprint"), "data_facts.source.fingerprint"),
        (lambda facts: facts.update(paired="yes"), "data_facts.paired"),
    ],
)
def test_facts_of_a_strangers_checkpoint_are_checked(translator_run, tmp_path, what, said):
    checkpoint = newest_checkpoint(shutil.copytree(translator_run, tmp_path / "run"))
    content = state_of(checkpoint)
    what(content["data_facts"])
    torch.save(content, checkpoint)
    with pytest.raises(ConfigError, match=said):
        load_trained(checkpoint, "cpu", Translates)


def test_run_is_not_resumed_on_other_sources(translator_run, tmp_path):
    from lightning_modules.step import OtherDataError

    part = tmp_path / "runs" / "translator" / translator_run.name
    shutil.copytree(translator_run, part)
    for path in part.glob("checkpoints/*.ckpt"):
        if path.name != "images_000000000048.ckpt":
            path.unlink()
    checkpoint = part / "checkpoints" / "images_000000000048.ckpt"
    content = state_of(checkpoint)
    content["data_facts"]["source"]["fingerprint"]["train"] = "another"
    torch.save(content, checkpoint)
    with pytest.raises(OtherDataError, match=r"the data is not what the checkpoint was trained on \(source: was"):
        trained("translator", tmp_path, f"resume={checkpoint}")


def test_report_says_what_the_columns_are(translator_run):
    page = (translator_run / "report.html").read_text()
    assert "Source, translation and, of pairs, target and difference" in page
    assert "Source and target in each row" in page and "Real images" not in page
    assert "<td>mean_absolute_error</td><td>grey level / 255" in page and "<th>data fingerprint" not in page
