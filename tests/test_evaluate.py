"""From a run or a folder to scores and a report, through the command line's own code."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, tiny_config, write_kidney
from PIL import Image

from datamodules.records import versions
from experiments import compare
from experiments.configuration.errors import ConfigError
from experiments.configuration.files import SUITES, shipped
from experiments.evaluate import main
from experiments.evaluation.evaluation import evaluate
from experiments.evaluation.subject import Subject, sets_of
from experiments.measuring.settings import build_tools, load_suite
from experiments.measuring.vectors import VectorCache
from experiments.publishing.generating import Request, generate_files
from experiments.running.training import train

SUITE = """
images: 120
replicates: 10
extractors:
  random_conv: {_target_: lightning_modules.metrics.features.RandomConvNet}
scores:
  frechet: {_target_: lightning_modules.metrics.frechet.Frechet}
  precision_recall: {_target_: lightning_modules.metrics.precision_recall.PrecisionRecall}
  ratio: {_target_: lightning_modules.metrics.memorisation.NeighbourDistanceRatio}
  copies: {_target_: lightning_modules.metrics.memorisation.Copies}
"""
# Its figures take most of an evaluation's time.
MOMENTS = "scores.moments._target_=lightning_modules.metrics.agreement.MomentAgreement"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return train(tiny_config("dcgan", tmp_path_factory.mktemp("run"), "data.count=160"))


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("suite") / "small.yaml"
    path.write_text(SUITE)
    return str(path)


@pytest.fixture(scope="module")
def evaluated(run, suite) -> dict:
    """The scores of the run by the whole suite."""
    return scores(evaluate(str(run), load_suite(suite, [])))


FEW = [f"scores.{name}=null" for name in ("copies", "ratio", "precision_recall")]


def scores(folder):
    return {row["name"]: row for row in json.loads((folder / "scores.json").read_text())["scores"]}


def write_pngs(folder, count, seed, dtype=np.uint8, low=0):
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    top = np.iinfo(dtype).max
    for i in range(count):
        smooth = np.kron(random.uniform(low, 1, (4, 4)), np.ones((8, 8)))
        Image.fromarray((smooth * top).astype(dtype)).save(folder / f"{seed}_{i:03d}.png")
    return folder


@pytest.mark.usefixtures("drawn")
def test_a_run_is_measured_and_reported(run, suite, capsys):
    assert main([str(run), f"suite={suite}", MOMENTS]) == 0
    said = capsys.readouterr().out
    assert "frechet_random_conv" in said and "report.html" in said
    (folder,) = run.glob("evaluation/small-000000000096-*")
    found = scores(folder)
    assert {
        "frechet_random_conv",
        "precision_random_conv",
        "moment_agreement",
        "copied_share",
    } <= found.keys()
    row = found["frechet_random_conv"]
    assert row["value"] > 0 and row["low"] < row["value"] < row["high"]
    assert row["verdict"] == "worse than the floor"  # a second of training
    print_ = row["fingerprint"]
    assert print_["extractor"] == "random_conv" and len(print_["weights_sha256"]) == 64
    assert print_["generated"] == 120 and print_["real"]["images"] == 120 and print_["resolution"] == [32, 32]
    table = list(csv.DictReader((folder / "scores.csv").open()))
    assert [r["name"] for r in table] == list(found)
    page = (folder / "report.html").read_text()
    assert "What pruning does" in page and (folder / "moments.csv").is_file()
    assert page.count("data:image/png") >= 6
    assert "http://" not in page and "https://" not in page and "<script" not in page


def test_a_second_evaluation_computes_nothing_again(run, suite, evaluated, monkeypatch):
    def never(*arguments):
        raise AssertionError("a vector is computed again")

    monkeypatch.setattr(VectorCache, "_compute", never)
    folder = evaluate(str(run), load_suite(suite, []))
    assert scores(folder) == evaluated
    assert "Moments of the pixel values" not in (folder / "report.html").read_text()  # no score asks for them
    assert not (folder / "moments.csv").exists()


def test_other_seeds_are_other_images(run, suite, evaluated, tmp_path):
    other = scores(evaluate(str(run), load_suite(suite, [*FEW, "seed=2", f"output={tmp_path}"])))
    assert evaluated["frechet_random_conv"]["value"] != other["frechet_random_conv"]["value"]


def test_two_checkpoints_can_be_compared(run, suite, tmp_path, capsys):
    folders = [
        evaluate(str(run / "checkpoints" / name), load_suite(suite, [*FEW, f"output={tmp_path / name}"]))
        for name in ("images_000000000040.ckpt", "images_000000000096.ckpt")
    ]
    assert compare.main([*map(str, folders), "--output", str(tmp_path / "comparison")]) == 0
    said = capsys.readouterr().out
    assert "frechet_random_conv" in said and "better" in said  # 40 images more
    first, second = (json.loads((folder / "scores.json").read_text()) for folder in folders)
    assert first["weights_sha256"] != second["weights_sha256"] and first["images_seen"] == 40


def test_other_data_than_the_runs_are_refused(run, suite, capsys):
    assert main([str(run), f"suite={suite}", "data.count=170"]) == 2
    assert "the data is not what the run was trained on" in capsys.readouterr().err


def test_data_that_is_read_by_other_rules_is_refused_with_them(run, suite, capsys, monkeypatch):
    monkeypatch.setitem(versions.CHANGES, versions.RESIZING, (versions.Change("means are exact"),))
    assert main([str(run), f"suite={suite}"]) == 2
    assert "files are read by other rules since then: resizing 2: means are exact" in capsys.readouterr().err


@pytest.mark.slow
def test_another_experiments_data_can_be_named(run, suite, evaluated, tmp_path):
    config = tmp_path / "others.yaml"
    config.write_text(f"extends: {ROOT / 'tests' / 'tiny.yaml'}\ndata: {{kind: chest_xray, count: 160}}\n")
    folder = evaluate(str(run), load_suite(suite, [f"against={config}", f"output={tmp_path / 'out'}"]))
    other, own = scores(folder)["frechet_random_conv"], evaluated["frechet_random_conv"]
    assert other["fingerprint"]["real"] != own["fingerprint"]["real"]
    assert other["value"] != own["value"]


@pytest.mark.parametrize(
    ("form", "apart"),
    [
        ("png8", 1e-5),
        pytest.param("png16", 0.01, marks=pytest.mark.slow),  # less rounded
        pytest.param("dicom", 1e-5, marks=pytest.mark.slow),
    ],
)
def test_files_of_a_generator_score_as_the_generator_does(run, suite, evaluated, tmp_path, form, apart):
    files = generate_files(Request(run, 120, seed=1, format=form, output=tmp_path / form)).folder
    found = scores(evaluate(str(files), load_suite(suite, [*FEW, f"against={run}", f"output={tmp_path / 'files'}"])))
    name = "frechet_random_conv"
    assert found[name]["value"] == pytest.approx(evaluated[name]["value"], rel=apart)


def test_a_folder_is_measured_against_a_folder(suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real, same, brighter = (
        write_pngs(tmp_path / name, 130, seed, low=low) for name, seed, low in (("r", 0, 0), ("s", 1, 0), ("b", 2, 0.5))
    )
    held_out = write_pngs(tmp_path / "h", 60, 3)
    overrides = [f"against={real}", f"held_out={held_out}"]
    alike = scores(evaluate(str(same), load_suite(suite, [*overrides, MOMENTS])))
    assert alike["frechet_random_conv"]["verdict"] == "within the floor"
    assert alike["moment_agreement"]["verdict"] != "worse than the floor"
    other = scores(evaluate(str(brighter), load_suite(suite, overrides)))
    assert other["frechet_random_conv"]["verdict"] == "worse than the floor"
    assert len(list(tmp_path.glob("evaluations/b-small-*/report.html"))) == 1


def test_copies_in_a_folder_are_named(suite, tmp_path):
    real, held_out = write_pngs(tmp_path / "real", 130, 0), write_pngs(tmp_path / "held_out", 110, 1)
    judged = write_pngs(tmp_path / "judged", 100, 2)
    for i, path in enumerate(sorted(real.iterdir())[:20]):
        Image.open(path).save(judged / f"2_{i:03d}.png", compress_level=1)  # the same pixels in other bytes
    output = tmp_path / "out"
    evaluate(str(judged), load_suite(suite, [f"against={real}", f"held_out={held_out}", f"output={output}"]))
    found = list(csv.DictReader((output / "copies.csv").open()))
    assert [float(row["distance"]) == 0.0 for row in found[:22]] == [True] * 20 + [False] * (len(found) - 20)
    assert len(found) <= 24  # a real image is taken for a copy now and then
    assert all(row["training image (pseudonym)"].startswith("p-") for row in found)
    assert scores(output)["copied_share"]["verdict"] == "worse than the floor"


@pytest.mark.slow
def test_listed_copies_are_those_that_the_score_counts(suite, tmp_path):
    names = ("real", "held_out", "judged")
    real, held_out, judged = (write_pngs(tmp_path / name, 100, seed) for seed, name in enumerate(names))
    few = ["extractors.random_conv=null", "images=100"]
    few += [f"scores.{name}=null" for name in ("frechet", "precision_recall", "ratio")]
    folders = [f"against={real}", f"held_out={held_out}", f"output={tmp_path / 'out'}"]
    out = evaluate(str(judged), load_suite(suite, [*few, *folders, "scores.copies.false_alarms=0.2"]))
    listed = list(csv.DictReader((out / "copies.csv").open()))
    assert len(listed) == round(100 * scores(out)["copied_share"]["value"]) > 5
    assert "than all but 19 of 100 held-out real images" in (out / "report.html").read_text()
    without = ["scores.ratio={_target_: lightning_modules.metrics.memorisation.NeighbourDistanceRatio}"]
    without += ["extractors.random_conv={_target_: lightning_modules.metrics.features.RandomConvNet}"]
    evaluate(str(judged), load_suite(suite, [*few, *folders, "scores.copies=null", *without]))
    assert not (out / "copies.csv").exists()
    assert "the suite leaves their score out" in (out / "report.html").read_text()


def test_held_out_patients_and_files_must_be_new(suite, tmp_path):
    real, held_out = write_pngs(tmp_path / "real", 20, 0), write_pngs(tmp_path / "held_out", 20, 1)
    judged = write_pngs(tmp_path / "judged", 20, 2)
    loaded = load_suite(suite, [f"against={real}", f"held_out={held_out}", f"groups={tmp_path / 'patients.csv'}"])

    def check(patient_of, suite=loaded):
        names = sorted({path.name for folder in (real, held_out) for path in folder.iterdir()})
        (tmp_path / "patients.csv").write_text("file,group\n" + "".join(f"{n},{patient_of(n)}\n" for n in names))
        return sets_of(suite, Subject(judged, None), real)

    assert len(check(lambda name: name[:-5]).held_out) == 20  # 0_00, 0_01; 1_00, 1_01
    with pytest.raises(ConfigError, match=r"held_out=.*: 2 of its 2 patients also have images in .*, e.g. 00;"):
        check(lambda name: name[2:-5])
    (real / "1_003.png").write_bytes((real / "0_003.png").read_bytes())  # a name that the other folder has too
    with pytest.raises(ConfigError, match=r"1 of its 2 patients .*, e.g. 1_00; .* no file of one folder is called as"):
        check(lambda name: name[:-5])
    (real / "1_003.png").rename(real / "0_020.png")
    (held_out / "1_020.png").write_bytes((real / "0_004.png").read_bytes())
    for of in (loaded, replace(loaded, groups=None)):
        with pytest.raises(ConfigError, match=r"1 of its 21 files also lie in against=.*, e.g. 1_020.png as 0_004.png"):
            check(lambda name: name[:-5], of)


def test_16_bit_files_meet_8_bit_ones(suite, tmp_path):
    real = write_pngs(tmp_path / "real", 130, 0)
    deep = write_pngs(tmp_path / "deep", 130, 0, np.uint16)
    overrides = [f"against={real}", f"output={tmp_path / 'out'}", "generated_value_range=[0,65535]"]
    folder = evaluate(str(deep), load_suite(suite, overrides))
    assert scores(folder)["frechet_random_conv"]["value"] < 0.01  # the same pictures, less rounded


def test_no_name_of_a_patient_or_a_file_is_written(suite, tmp_path):
    root = write_kidney(tmp_path / "data", per_class=30)
    config = tmp_path / "kidney.yaml"
    config.write_text(
        f"extends: {ROOT / 'tests' / 'tiny_kidney.yaml'}\nruns_dir: {tmp_path / 'runs'}\ndata: {{root: {root}}}\n"
    )
    from experiments.configuration import files as config_files

    folder = evaluate(str(train(config_files.load(str(config)))), load_suite(suite, ["images=60", MOMENTS]))
    assert (folder / "moments.csv").is_file()
    for path in folder.iterdir():
        text = path.read_text()
        assert "Cyst- (" not in text and str(root) not in text, path.name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "is no run directory, no checkpoint and no folder"),
        (["."], "a folder needs real images: against="),
        (["RUN", "suite=standart"], "did you mean 'standard'?"),
        (["RUN", "replicates=3"], "a spread needs at least 10"),
        ([".", "value_range=[0,.inf]"], "value_range=[0.0, inf]: give two finite values, the smaller one first"),
        (["RUN", "scores.frechet.k=3"], "Frechet has no argument 'k'"),
        (["RUN", "extractors.random_conv=null"], "there is no extractor"),
        (["RUN", "against=tests/tiny.yaml", "split=test", "data.test_fraction=0"], "no images; take train"),
        (["RUN", "groups=patients.csv"], "groups: these are for folders"),
        (["RUN", "truncation=-1", "data.count=9"], "the data is not what the run was trained on"),
        (["RUN", "device=cuda"], "no GPU is visible"),
        (["RUN", "against=nothing"], "'nothing' is no experiment"),
    ],
)
def test_what_cannot_be_measured_is_refused(run, suite, arguments, said, capsys):
    target, *overrides = arguments
    assert main([str(run) if target == "RUN" else target, f"suite={suite}", *overrides]) == 2
    assert said in capsys.readouterr().err


def test_suites_are_listed_and_shown(capsys):
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == shipped(SUITES)
    assert main(["x", "suite=full", "--show"]) == 0
    assert "InceptionV3" in capsys.readouterr().out


@pytest.mark.parametrize("name", shipped(SUITES))
def test_shipped_suites_build(name, tmp_path):
    (tmp_path / "weights.pt").touch()
    needed = ("radimagenet", "torchxrayvision", "dinov2", "rad_dino") if name == "medical" else ()
    suite = load_suite(name, [f"extractors.{extractor}.weights={tmp_path / 'weights.pt'}" for extractor in needed])
    tools = build_tools(suite)
    assert set(needed) <= tools.extractors.keys()
    assert tools.instruments.keys() == suite.scores.keys() and len(tools.instruments) >= 4 and tools.extractors


def test_extractors_without_weights_are_left_out_aloud(tmp_path, caplog):
    (tmp_path / "weights.pt").touch()
    with caplog.at_level("INFO"):
        tools = build_tools(load_suite("medical", [f"extractors.rad_dino.weights={tmp_path / 'weights.pt'}"]))
    assert tools.extractors.keys() == build_tools(load_suite("standard", [])).extractors.keys() | {"rad_dino"}
    assert "medical: left out for want of weights: radimagenet, torchxrayvision, dinov2;" in caplog.text
    for overrides, message in (
        ([], "medical: none of radimagenet, torchxrayvision, dinov2, rad_dino has weights; extractors.NAME.weights="),
        (["extractors.rad_dino.weight=x"], "RADDINO has no argument 'weight'; did you mean 'weights'"),
        (["extractors.rad_dino.weights=3"], "extractors.rad_dino.weights=3: expected str, got int"),
        (["extractors.mine.weights=null"], "extractors.mine: names no class"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)) as error:
            load_suite("medical", overrides)
        assert len(error.value.problems) == 1
    with pytest.raises(ConfigError, match="no such file; it should be a state dict of RAD-DINO"):
        build_tools(load_suite("medical", [f"extractors.rad_dino.weights={tmp_path / 'missing.pt'}"]))
    assert load_suite("full", ["extractors.inception.weights=null"]).extractors["inception"]  # fetched by itself


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(run, suite, evaluated, tmp_path):
    output, cache = tmp_path / "killed", tmp_path / "cache"
    command = [sys.executable, "-m", "experiments.evaluate", str(run), f"suite={suite}", f"output={output}"]
    process = subprocess.Popen(
        [*command, f"data.cache_dir={cache}"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not (output / "scores.partial.jsonl").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "scores.json").exists()
    done = subprocess.run(
        [*command, f"data.cache_dir={cache}"], cwd=ROOT, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert scores(output) == evaluated
