"""What is exported makes the images of the run, and its model card says what the run recorded and nothing private."""

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, flip_a_bit, tiny_config
from PIL import Image
from safetensors.torch import load, save

from experiments import export as verb
from experiments.configuration.errors import ConfigError
from experiments.publishing.exporting import export
from experiments.record.loading import generate, load_run
from experiments.running.training import train
from lightning_modules.networks.exported import ExportedGenerator, ExportError, arguments_of, build, load_generator

CASES = ("dcgan", "wgan_gp", "kidney_gan", "progressive", "progressive in mid-fade", "progressive in an early stage")
CLOCKS = {"progressive in mid-fade": 68, "progressive in an early stage": 32}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each family; of the growing one also two checkpoints."""
    folder = tmp_path_factory.mktemp("export")
    families = ("dcgan", "wgan_gp", "kidney_gan", "progressive")
    found = {family: train(tiny_config(family, folder, "callbacks.health.every_images=16")) for family in families}
    for case, clock in CLOCKS.items():
        found[case] = found["progressive"] / "checkpoints" / f"images_{clock:012d}.ckpt"
    return found


@pytest.fixture(scope="module")
def exports(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    return {case: export(runs[case], folder / case.replace(" ", "_"), with_onnx=False) for case in CASES}


@pytest.fixture
def copied(exports, tmp_path):
    """An export that a test may damage."""
    for name in ("generator.json", "generator.safetensors"):
        (tmp_path / name).write_bytes((exports["dcgan"] / name).read_bytes())
    return tmp_path


def change(folder, **values):
    said = json.loads((folder / "generator.json").read_text())
    (folder / "generator.json").write_text(json.dumps({**said, **values}))


def replace_weights(folder, weights):
    content = save(weights)
    (folder / "generator.safetensors").write_bytes(content)
    change(folder, files={"generator.safetensors": hashlib.sha256(content).hexdigest()})


@pytest.mark.parametrize("case", CASES)
def test_exported_images_are_the_runs_bit_for_bit(runs, exports, case):
    module, generator = load_run(runs[case]).module, load_generator(exports[case])
    assert torch.equal(generator.sample(16, seed=3, start=16), module.sample(16, seed=3, start=16))
    listed = torch.cat([images for _, images in generate(module, 5, 30, seed=4)])
    assert torch.equal(generator.sample(30, seed=4, start=5), listed)
    if module.generator_ema.truncates:
        assert torch.equal(generator.sample(16, truncation=0.5), module.sample(16, truncation=0.5, seed=0))


def test_a_folder_that_medigan_cannot_import_is_refused(runs, tmp_path):
    with pytest.raises(ConfigError, match="imports the folder by its name, which takes no dots"):
        export(runs["dcgan"], tmp_path / "model.v2", form="medigan")
    assert not (tmp_path / "model.v2").exists()


SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in ("wgan_gp", "progressive in mid-fade")]


@pytest.mark.parametrize("case", ["dcgan", "kidney_gan", *SLOW])
def test_onnx_makes_the_images_to_1e_4(runs, tmp_path, case):
    import onnxruntime

    folder = export(runs[case], tmp_path / "export")
    generator = load_generator(folder)
    session = onnxruntime.InferenceSession(folder / "generator.onnx", providers=["CPUExecutionProvider"])
    for n in (1, 2, 5, 16):
        latents = torch.randn(n, generator.latent_dim, generator=torch.Generator().manual_seed(n))
        with torch.no_grad():
            images = generator(latents)
        (other,) = session.run(["images"], {"latents": latents.numpy()})
        assert other.shape == tuple(images.shape) and other.dtype == np.float32
        assert np.abs(other - images.numpy()).max() < 1e-4
    content = (folder / "generator.onnx").read_bytes()
    assert str(ROOT).encode() not in content and b'File "' not in content and b"/torch/" not in content
    assert b"Synthetic image made by a GAN" in content
    said = json.loads((folder / "generator.json").read_text())
    assert said["files"]["generator.onnx"] == hashlib.sha256(content).hexdigest()
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)[-1]
    names: dict = {}
    exec(code.replace("FOLDER", str(folder)), names)
    assert names["latents"].shape == (16, generator.latent_dim) and names["latents"].dtype == np.float32
    assert generator.prior == "normal" or np.abs(names["latents"]).max() <= {"uniform": 1}.get(generator.prior, 2)
    assert names["images"].shape == (16, 1, *generator.resolution)


def test_images_are_clamped_like_those_of_sample(exports):
    generator = load_generator(exports["progressive"])  # its last layer is linear
    generator.network.to_image[-1].bias.fill_(3.0)
    assert generator.network(torch.zeros(1, 8)).max() > 1.0 and generator.sample(4).max() == 1.0


def test_stage_of_the_checkpoint_is_what_is_exported(runs, exports, tmp_path, caplog):
    fading, early = (json.loads((exports[case] / "generator.json").read_text()) for case in CLOCKS)
    cards = [(exports[case] / "README.md").read_text() for case in ("progressive in mid-fade", "progressive")]
    assert ["at another time of the run" in card for card in cards] == [True, False]
    assert (fading["network"]["stage"], fading["network"]["alpha"], fading["images_seen"]) == (2, 0.2, 68)
    assert (early["image"]["height"], early["image"]["width"]) == (10, 8)
    assert load_generator(exports["progressive in an early stage"]).sample(2).shape == (2, 1, 10, 8)
    export(runs["progressive in an early stage"], tmp_path / "export", with_onnx=False)
    assert "the generator is at stage 1, faded in by 40%: its images are 10x8; at the end they will be" in caplog.text
    card = (exports["progressive in an early stage"] / "README.md").read_text()
    assert "| stage of growth | 1 (of 0 to 2), faded in by 40%; not the final size |" in card
    assert "32 of 96 planned images" in card


def test_description_says_what_the_images_are(runs, exports):
    said, trained = json.loads((exports["dcgan"] / "generator.json").read_text()), load_run(runs["dcgan"])
    assert said["synthetic"] is True and said["weights_sha256"] == trained.weights_sha256
    assert said["latents"] == {"length": 100, "prior": "uniform", "truncation": True}
    assert said["intensity"]["unit"] == "grey level / 255" and said["data_set"] == "Phantoms"
    assert said["licence"].startswith("not recorded")


def test_loading_needs_no_lightning(exports):
    code = (
        "import sys\n"
        "from lightning_modules.networks.exported import load_generator\n"
        f"generator = load_generator({str(exports['dcgan'])!r})\n"
        "print(tuple(generator.sample(2, seed=0).shape))\n"
        "assert not {'lightning', 'monai', 'wandb', 'omegaconf'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "(2, 1, 32, 32)\n", done.stderr


def test_five_lines_of_the_card_work(exports):
    card = (exports["dcgan"] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 5
    names: dict = {}
    exec(code.replace("FOLDER", str(exports["dcgan"])), names)
    assert names["images"].shape == (16, 1, 32, 32)
    assert 0.0 <= names["values"].min() and names["values"].max() <= 1.0


def test_loading_does_not_move_the_global_random_state(exports):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_generator(exports["progressive"])
    assert torch.equal(torch.rand(3), expected)


def test_exporting_twice_gives_the_same_files(runs, exports, tmp_path):
    other = export(runs["dcgan"], tmp_path / "again", with_onnx=False)
    for path in exports["dcgan"].iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name


# Formats of other tools -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(runs, tmp_path_factory):
    """A growing generator in mid-fade, in the formats of other tools."""
    folder, run = tmp_path_factory.mktemp("published"), runs["progressive in mid-fade"]
    return {form: export(run, folder / form, with_onnx=False, form=form) for form in ("monai-bundle", "medigan")}


# In the bundle's folder, as a user would; no connection can be made.
WITH_MONAI = """
import json, socket, sys
from pathlib import Path

def refuse(*_): raise OSError("no network")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import torch
from monai.bundle import ConfigParser, load, run, verify_metadata

run(config_file="configs/inference.json", num_samples=21, seed=3, output_dir=sys.argv[1])
parser = ConfigParser({**ConfigParser.load_config_file("configs/inference.json"), "num_samples": 21, "seed": 3})
parser.get_parsed_content("initialize")
torch.save(parser.get_parsed_content("images"), sys.argv[1] + "/images.pt")
network = load(Path.cwd().name, bundle_dir=Path.cwd().parent, workflow_type="inference", device="cpu")
assert torch.equal(network.sample(21, seed=3), parser.get_parsed_content("images"))
verify_metadata(meta_file="configs/metadata.json", filepath=sys.argv[2])
code = sys.modules["lightning_modules.networks.exported"].__file__
assert Path(code).is_relative_to(Path.cwd()), code
assert not {name.split(".")[0] for name in sys.modules} & {"experiments", "callbacks", "datamodules", "lightning"}
"""
# What meta_schema_20240725.json of MONAI requires; MONAI reads the file if it is there, and downloads it otherwise.
TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
    "properties": {
        "num_channels": {"type": "integer"},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}},
        "channel_def": {"type": "object"},
        "is_patch_data": {"type": "boolean"},
    },
}
ENDS = {"type": "object", "minProperties": 1, "additionalProperties": TENSOR}
TEXTS = ("schema version monai_version pytorch_version numpy_version task description authors copyright").split()
SCHEMA = {
    "type": "object",
    "required": [*TEXTS, "required_packages_version", "network_data_format"],
    "properties": {
        **{name: {"type": "string"} for name in (*TEXTS, "intended_use", "data_source")},
        "required_packages_version": {"type": "object"},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {"inputs": ENDS, "outputs": ENDS},
        },
    },
}


@pytest.mark.slow
def test_monai_runs_the_bundle_offline_and_makes_the_images_of_generate(runs, published, tmp_path):
    from datamodules.writing.writers import write_png8

    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    done = subprocess.run(
        [sys.executable, "-c", WITH_MONAI, str(tmp_path / "eval"), str(tmp_path / "schema.json")],
        cwd=published["monai-bundle"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    module = load_run(runs["progressive in mid-fade"]).module
    expected = torch.cat([images for _, images in generate(module, 0, 21, seed=3)])
    assert torch.equal(torch.load(tmp_path / "eval" / "images.pt", weights_only=True), expected)
    for i, image in enumerate(expected):
        write_png8(image, tmp_path / "ours.png")
        with (
            Image.open(tmp_path / "eval" / f"synthetic_{i:06d}.png") as theirs,
            Image.open(tmp_path / "ours.png") as ours,
        ):
            assert np.array_equal(np.asarray(theirs), np.asarray(ours))


def test_bundle_says_what_it_holds(published):
    folder = published["monai-bundle"]
    said = json.loads((folder / "configs" / "metadata.json").read_text())
    assert said["network_data_format"]["outputs"]["pred"]["spatial_shape"] == [20, 16]
    assert said["network_data_format"]["inputs"]["latent"]["num_channels"] == 8
    content = (folder / "models" / "model.pt").read_bytes()
    assert said["mirage"]["files"] == {"models/model.pt": hashlib.sha256(content).hexdigest()}
    assert "python -m monai.bundle run" in (folder / "docs" / "README.md").read_text()
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert (folder / "docs" / "samples.png").is_file()


def test_bundle_holds_onnx_unless_it_is_left_out(runs, tmp_path, monkeypatch):
    from experiments.publishing import exporting

    monkeypatch.setattr(exporting, "onnx_of", lambda *_: b"onnx")
    folder = export(runs["dcgan"], tmp_path / "bundle", form="monai-bundle")
    assert (folder / "models" / "model.onnx").read_bytes() == b"onnx"
    export(runs["dcgan"], folder, with_onnx=False, form="monai-bundle")
    assert not (folder / "models" / "model.onnx").exists()


def test_medigan_imports_the_package_and_gets_the_next_images_each_time(runs, published, tmp_path, monkeypatch):
    """As medigan 1.0.0 does: the folder lies below models/ID, metadata say what to call."""
    said = json.loads((published["medigan"] / "metadata.json").read_text())
    ((model, entry),) = said.items()
    assert re.fullmatch(r"\d{5}\w{8,25}", model)
    execution = entry["execution"]
    assert execution["package_name"] == "medigan" and (entry["selection"]["height"], execution["image_size"][1]) == (
        20,
        16,
    )
    shutil.copytree(published["medigan"], tmp_path / "models" / model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    package = importlib.import_module(f"models.{model}")
    method, arguments = execution["generate_method"]["name"], execution["generate_method"]["args"]
    weights = f"models/{model}/{execution['model_name']}{execution['extension']}"
    base = {"model_file": weights, "num_samples": 5, "output_path": "out", "save_images": False}
    assert set(arguments["base"]) == set(base)

    expected = load_run(runs["progressive in mid-fade"]).module.sample(16, seed=0)
    levels = ((expected + 1.0) * 127.5).round().permute(0, 2, 3, 1).numpy()
    made = [getattr(package, method)(**base, **arguments["custom"]) for _ in range(2)]
    assert [image.dtype for image in made[0]] == [np.uint8] * 5
    assert np.array_equal(np.stack([*made[0], *made[1]]), levels[:10])
    assert package.generate(**{**base, "num_samples": 0}) == []
    package.generate(**{**base, "save_images": True})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{i:06d}.png" for i in range(10, 15)]
    with Image.open(tmp_path / "out" / "000010.png") as picture:
        assert picture.info["Synthetic"] == "yes" and np.array_equal(np.asarray(picture), levels[10, ..., 0])
    assert np.array_equal(package.generate(**{**base, "seed": 9})[0], package.generate(weights, 1, seed=0)[0]) is False


@pytest.mark.slow
def test_modules_in_a_medigan_package_are_enough(published, tmp_path):
    code = (
        "import importlib, sys\n"
        f"sys.path[:0] = [{str(published['medigan'].parent)!r}, {str(published['medigan'])!r}]\n"
        "package = importlib.import_module('medigan')\n"
        f"print(len(package.generate({str(published['medigan'] / 'generator.safetensors')!r}, 2)))\n"
        f"assert sys.modules['lightning_modules'].__file__.startswith({str(published['medigan'])!r})\n"
        "assert not {'experiments', 'callbacks', 'datamodules', 'lightning', 'monai'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "2\n", done.stderr


@pytest.mark.parametrize("form", ["monai-bundle", "medigan"])
def test_published_files_are_the_same_twice_and_name_no_path(runs, published, tmp_path, form):
    other = export(runs["progressive in mid-fade"], tmp_path / form, with_onnx=False, form=form)
    found = sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    assert found == sorted(
        path.relative_to(published[form])
        for path in published[form].rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and "eval" not in path.parts
    )
    for name in found:
        content = (other / name).read_bytes()
        assert content == (published[form] / name).read_bytes(), name
        for private in (
            str(ROOT),
            os.environ["MIRAGE_CACHE"],
            os.environ["MIRAGE_PRIVATE"],
            "/tmp",
            "/root/",
            "/home/",
        ):
            assert private.encode() not in content, (name, private)


@pytest.mark.parametrize("there", ["safetensors", "monai-bundle", "medigan"])
@pytest.mark.parametrize("asked", ["safetensors", "monai-bundle", "medigan"])
def test_export_of_another_format_is_not_overwritten(runs, exports, published, tmp_path, there, asked):
    folder = tmp_path / "out"
    shutil.copytree({"safetensors": exports["progressive"], **published}[there], folder)
    before = sorted(folder.rglob("*"))
    if asked == there:
        assert export(runs["progressive"], folder, with_onnx=False, form=asked) == folder
        return
    with pytest.raises(ConfigError, match="holds an export of another format"):
        export(runs["progressive"], folder, with_onnx=False, form=asked)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("change", [{"class": "os.system"}, {"stage": 3}, {"alpha": 2.0}])
def test_network_that_there_is_not_is_not_built(exports, change):
    network = json.loads((exports["progressive"] / "generator.json").read_text())["network"]
    assert build(network, "normal").network.stage == 2
    assert build(network, "normal", normalises_latents=True).network.stage == 2  # as bundles of older versions say
    with pytest.raises(ExportError, match=r"is none of|has no such stage"):
        build({**network, **change}, "normal")


# What a stranger's folder may hold ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["generator.json", "generator.safetensors"])
def test_missing_file_is_said(copied, name):
    (copied / name).unlink()
    with pytest.raises(ExportError, match="holds no exported network"):
        load_generator(copied)


def test_damaged_weights_are_refused(copied):
    flip_a_bit(copied / "generator.safetensors")
    with pytest.raises(ExportError, match=r"is not the file that generator\.json describes"):
        load_generator(copied)


@pytest.mark.parametrize("name", ["os.system", "torch.nn.Linear", "lightning_modules.networks.dcgan.Discriminator", []])
def test_other_classes_are_refused(copied, name):
    said = json.loads((copied / "generator.json").read_text())
    change(copied, network={**said["network"], "class": name})
    with pytest.raises(ExportError, match=r"is none of|is no exported network"):
        load_generator(copied)


@pytest.mark.parametrize(
    "arguments",
    [
        {"latent_dim": 10**15},
        {"base_channels": 10**9},
        {"image_size": [2**40, 2**40]},
        {"image_size": "32"},
        {"image_size": None},
        {"image_channels": -1},
        {"unknown": 1},
    ],
)
def test_other_arguments_are_refused_without_taking_memory(copied, arguments):
    said = json.loads((copied / "generator.json").read_text())
    network = said["network"]
    change(copied, network={**network, "arguments": {**network["arguments"], **arguments}})
    with pytest.raises(ExportError):
        load_generator(copied)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": 1}', b'{"format": 2}', b"[" * 60000, b" " * 70000])
def test_broken_description_is_refused(copied, content):
    (copied / "generator.json").write_bytes(content)
    with pytest.raises(ExportError):
        load_generator(copied)


def test_weights_of_another_shape_type_or_without_end_are_refused(copied):
    weights = load((copied / "generator.safetensors").read_bytes())
    name = max(weights, key=lambda name: weights[name].numel())  # they come in any order, and some have one row only
    for wrong, said in (
        (weights[name][:1], "other weights"),
        (weights[name].half(), "other weights"),
        (weights[name] * float("nan"), "not finite"),
    ):
        replace_weights(copied, {**weights, name: wrong.contiguous()})
        with pytest.raises(ExportError, match=said):
            load_generator(copied)
    (copied / "generator.safetensors").write_bytes(b"\xff" * 100)
    change(copied, files={"generator.safetensors": hashlib.sha256(b"\xff" * 100).hexdigest()})
    with pytest.raises(ExportError, match="is no exported network"):
        load_generator(copied)


@pytest.mark.parametrize("stage", [-1, 3, None])
def test_stage_that_there_is_not_is_refused(exports, tmp_path, stage):
    for name in ("generator.json", "generator.safetensors"):
        (tmp_path / name).write_bytes((exports["progressive"] / name).read_bytes())
    said = json.loads((tmp_path / "generator.json").read_text())
    change(tmp_path, network={**said["network"], "stage": stage})
    with pytest.raises(ExportError):
        load_generator(tmp_path)


def test_network_that_cannot_be_loaded_again_is_not_exported():
    with pytest.raises(ExportError, match="add it to"):
        arguments_of(torch.nn.Linear(2, 2))


def test_truncation_that_would_do_nothing_is_refused(exports):
    with pytest.raises(ValueError, match="normalises its latents"):
        load_generator(exports["progressive"]).sample(1, truncation=0.5)
    with pytest.raises(ValueError, match="n=0"):
        load_generator(exports["progressive"]).sample(0)


# The model card -------------------------------------------------------------------------------------------------------


def test_card_says_what_the_run_recorded(runs, exports):
    card = (exports["dcgan"] / "README.md").read_text()
    facts = load_run(runs["dcgan"]).module.data_facts
    assert f"| train | 40 | {facts['groups']['train']} | {facts['fingerprint']['train']} |" in card
    assert "96 of 96 planned images (state of the run: finished)" in card
    assert "| data.kind | kidney_ct |" in card and "| callbacks.ema.half_life_images | 20 |" in card
    newest = json.loads((runs["dcgan"] / "scores.jsonl").read_text().splitlines()[-1])
    assert f"| value | {newest['value']:.4g} |" in card and "| extractor | random_conv |" in card
    assert json.loads((runs["dcgan"] / "health.json").read_text())["verdict"] in card
    assert "shows no patient" in card
    assert "No evaluation was found in the run" in card and "memorisation scores above" not in card


@pytest.mark.parametrize("case", CASES)
def test_card_and_description_name_no_path_and_no_secret(exports, case):
    for name in ("README.md", "generator.json", "samples.png", "generator.safetensors"):
        content = (exports[case] / name).read_bytes()
        for private in (str(ROOT), os.environ["MIRAGE_CACHE"], os.environ["MIRAGE_PRIVATE"], "/tmp", "/root", "/home"):
            assert private.encode() not in content, (name, private)


def test_card_shows_no_free_text_of_the_configuration(runs, tmp_path, monkeypatch):
    run = tmp_path / "named" / "run"
    shutil.copytree(runs["dcgan"], run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("wandb_project: mirage", "wandb_project: patient-MILLER"))
    monkeypatch.setenv("A_TOKEN", "swordfish-123")
    (run / "health.json").write_text(json.dumps({"verdict": "token=swordfish-123 <script>|`[x](y)"}))
    card = (export(run, tmp_path / "out", with_onnx=False) / "README.md").read_text()
    assert "MILLER" not in card and "swordfish" not in card and "cache_dir" not in card and "runs_dir" not in card
    assert "<script>" not in card and "&lt;script&gt;\\|\\`\\[x\\](y)" in card


def test_card_of_a_run_whose_data_is_not_known_here_says_so(runs, tmp_path):
    run = tmp_path / "named" / "run"
    shutil.copytree(runs["dcgan"], run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("datamodules.phantoms.Phantoms", "datamodules.elsewhere.Theirs"))
    card = (export(run, tmp_path / "out", with_onnx=False) / "README.md").read_text()
    assert "| data | not recorded |" in card and "data.kind" not in card


def test_card_shows_evaluations_of_these_weights_only(runs, tmp_path):
    run = tmp_path / "named" / "run"
    shutil.copytree(runs["wgan_gp"], run)
    row = {
        "name": "kid",
        "value": 0.5,
        "low": 0.4,
        "high": 0.6,
        "floor_low": 0.01,
        "floor_high": 0.02,
        "verdict": "off",
    }
    said = {
        "mine": {"weights_sha256": load_run(run).weights_sha256, "scores": [row, "nonsense", {"name": "fid"}]},
        "older": {"weights_sha256": "0" * 64, "scores": [row]},
        "unsaid": {"scores": [{**row, "value": 0.7}]},
        "broken": [],
    }
    for name, content in said.items():
        (run / "evaluation" / name).mkdir(parents=True)
        (run / "evaluation" / name / "scores.json").write_text(json.dumps(content))
    card = (export(run, tmp_path / "out", with_onnx=False) / "README.md").read_text()
    assert "Evaluation mine, of these weights:" in card
    assert "| kid | 0.5 | 0.4 to 0.6 | 0.01 to 0.02 | off |" in card
    assert "| fid | not recorded | not recorded | not recorded | not recorded |" in card
    assert "Evaluation older: is of other weights and not shown." in card
    assert "Evaluation unsaid, which does not say of which weights:" in card and "| kid | 0.7 |" in card
    assert "Evaluation broken: cannot be read." in card and "memorisation scores above" in card


def test_what_is_missing_is_said_to_be_so(runs, tmp_path):
    run = tmp_path / "named" / "run"
    shutil.copytree(runs["dcgan"], run)
    for name in ("scores.jsonl", "health.json", "versions.json", "status.json"):
        (run / name).unlink()
    card = (export(run, tmp_path / "out", with_onnx=False) / "README.md").read_text()
    assert "Scores: not recorded." in card and "Health: not recorded." in card
    assert "| version of torch | not recorded |" in card and "(state of the run: not recorded)" in card


def test_samples_are_generated_images(runs, exports):
    with Image.open(exports["dcgan"] / "samples.png") as picture:
        assert picture.info["Synthetic"] == "yes"
        pixels = np.asarray(picture)
    first = load_run(runs["dcgan"]).module.sample(16, seed=0)[0, 0].numpy()
    assert np.abs(pixels[2:34, 2:34] - (first + 1.0) * 127.5).max() <= 0.51
    assert pixels.shape == (8 * 34 + 2, 8 * 34 + 2)


# The verb -------------------------------------------------------------------------------------------------------------


def test_default_folder_lies_in_the_run_and_is_replaced(runs, capsys):
    run = runs["dcgan"]
    assert verb.main([str(run), "--no-onnx"]) == 0
    assert f"exported to {run / 'export'}" in capsys.readouterr().out
    (run / "export" / "generator.onnx").write_bytes(b"old")
    assert verb.main([str(run), "--no-onnx"]) == 0
    names = {path.name for path in (run / "export").iterdir()}
    assert names == {"README.md", "generator.json", "generator.safetensors", "samples.png"}


def test_missing_packages_for_onnx_are_said_and_nothing_is_written(runs, tmp_path, monkeypatch, capsys):
    from experiments.publishing import exporting

    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    assert verb.main([str(runs["dcgan"]), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "ONNX needs onnx and onnxscript: install mirage-gan[export], or leave it out with --no-onnx" in said
    assert not (tmp_path / "out").exists()


def test_folder_with_something_else_is_refused_and_left_alone(runs, tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    assert verb.main([str(runs["dcgan"]), "--output", str(tmp_path), "--no-onnx"]) == 2
    assert "is not empty and holds no export" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_generator_whose_weights_are_not_finite_is_refused(runs, tmp_path, monkeypatch):
    from experiments.publishing import exporting

    trained = load_run(runs["dcgan"])
    next(trained.module.generator_ema.parameters()).fill_(float("nan"))
    monkeypatch.setattr(exporting, "load_trained", lambda *_: trained)
    with pytest.raises(ConfigError, match="not finite"):
        export(runs["dcgan"], tmp_path / "out", with_onnx=False)
    assert not (tmp_path / "out").exists()


def test_exported_generator_trains_nothing(exports):
    generator = load_generator(exports["dcgan"])
    assert isinstance(generator, ExportedGenerator) and not generator.training
    assert not any(parameter.requires_grad for parameter in generator.parameters())
