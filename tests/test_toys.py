"""A conditional family and a classifier, in their smallest form, go through everything that a run goes through."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import newest_checkpoint
from PIL import Image
from toy_runs import arguments, assert_resumes, in_two_processes, state_of, trained

from experiments import run as verb
from experiments.configuration.errors import ConfigError
from experiments.evaluation.evaluation import evaluate
from experiments.measuring.settings import load_suite
from experiments.publishing.exporting import export
from experiments.publishing.generating import Request, generate_files
from experiments.record.loading import generate, load_run
from experiments.record.tracking import read_rows
from lightning_modules.networks import exported
from lightning_modules.networks.latents import rows_of
from lightning_modules.protocols import Averages, Clocked, Judges, Samples, can
from lightning_modules.schedules import ConstantSchedule
from lightning_modules.step import Phase

NOISY = ["module.noisy=true"]
COUNT = 20


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    return {
        "conditional": trained("conditional", folder),
        "noisy": trained("conditional", folder, "name=noisy", *NOISY),
        "relativistic": trained("conditional", folder, "name=relativistic", "module.relativistic=true"),
        "classifier": trained("classifier", folder),
    }


# A conditional family ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("conditional", []),
        ("noisy", ["name=noisy", *NOISY]),
        ("relativistic", ["name=relativistic", "module.relativistic=true"]),
    ],
)
def test_conditional_run_resumes_to_the_bit(runs, tmp_path, family, more):
    whole = runs[family]
    assert_resumes(whole, tmp_path, lambda resume: trained("conditional", tmp_path, *more, resume), 48)
    state = state_of(newest_checkpoint(whole))["process_state"]
    assert state["pool"].shape == (1, 2, 1, 32, 32) and state["pool"].std() > 0 and state["mean_score"] != 0


@pytest.mark.slow
def test_conditional_run_of_two_processes_resumes_to_the_bit(tmp_path):
    """Each process has a pool of its own, which the checkpoint gives back to it."""
    (tmp_path / "whole").mkdir()
    whole = in_two_processes("conditional", tmp_path / "whole", *NOISY)
    pools = state_of(newest_checkpoint(whole))["process_state"]["pool"]
    assert len(pools) == 2 and not torch.equal(pools[0], pools[1])

    def go_on(resume):
        in_two_processes("conditional", tmp_path, *NOISY, resume)

    assert_resumes(whole, tmp_path, go_on, 48)
    alone = tmp_path / "alone"
    checkpoint = whole / "checkpoints" / "images_000000000048.ckpt"
    trained("conditional", alone, *NOISY, f"resume={checkpoint}", "allow_changes=true")  # one process takes the first's


def test_two_batches_of_real_images_reach_the_losses(tmp_path, monkeypatch):
    """The second half of a step's images is the next batch of the stream, and the clock counts one batch."""
    from lightning_modules.toy_conditional import ToyConditional

    shown = []
    losses = ToyConditional.generator_losses
    monkeypatch.setattr(ToyConditional, "generator_losses", lambda self, b: shown.append(b) or losses(self, b))
    trained("conditional", tmp_path, "module.relativistic=true", "schedule.total_images=16")
    assert [(len(b["image"]), len(b["label"]), len(set(b["id"])), b["images_seen"]) for b in shown] == [
        (16, 16, 16, 0),
        (16, 16, 16, 8),
    ]
    assert not set(shown[0]["id"]) & set(shown[1]["id"])  # a pass has 40 images


def test_what_is_observed_is_not_minimised():
    phase = Phase("x", 0, dict, observed=("watched",))
    assert phase.minimised({"a": torch.tensor(2.0), "watched": torch.tensor(5.0), "b": torch.tensor(1.0)}) == 3.0


def test_labels_come_in_the_familys_order(runs):
    module = load_run(runs["conditional"]).module
    assert module.data_facts["classes"] == ["Cyst", "Normal", "Stone", "Tumor"] and module.classes == ("Normal", "Cyst")
    labels = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
    assert module.labels_of({"label": labels}).tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_rows_are_those_of_the_familys_classes():
    assert rows_of({"A|B": 2, "B": 1, "C": 4, "": 8, "B|A": 1}, ["B", "A"]) == {"": 12, "B": 1, "B|A": 3}


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ("['$__import__(\"os\")',Cyst]", "letters, digits, spaces"),
        ("['Cyst|Normal',Cyst]", "letters, digits, spaces"),
        ("[Cyst,Cyst]", "'Cyst' is there twice"),
    ],
)
def test_names_that_tables_and_other_tools_would_take_for_something_else_are_refused(tmp_path, capsys, classes, said):
    assert verb.main(arguments("conditional", tmp_path, f"module.classes={classes}")) == 2
    assert said in (err := capsys.readouterr().err) and "module.classes: " in err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda facts: facts.pop("label_rows"), "does not say how many training images have which labels"),
        (lambda facts: facts.update(label_rows={}), "does not say how many training images have which labels"),
        (lambda facts: facts.update(label_rows={"Cyst": 2**53, "": 5}), "does not say how many"),
        (lambda facts: facts.update(label_rows={"Cist": 3}), "label_rows: Cist is none of the classes"),
        (lambda facts: facts.update(classes=["Cyst"]), "classes: lacks Normal, which the run's family is told"),
        (lambda facts: facts["classes"].append("$x"), "letters, digits, spaces"),
    ],
)
def test_labels_of_a_strangers_checkpoint_are_checked(runs, tmp_path, change, said):
    run = shutil.copytree(runs["conditional"], tmp_path / "run")
    checkpoint = newest_checkpoint(run)
    content = state_of(checkpoint)
    change(content["data_facts"])
    torch.save(content, checkpoint)
    with pytest.raises(ConfigError, match=said):
        load_run(checkpoint)


def test_images_without_a_finding_can_be_asked_for(runs, tmp_path):
    folder = generate_files(Request(runs["conditional"], 2, labels=("none",), output=tmp_path / "none")).folder
    assert {row.split(",")[-1] for row in (folder / "manifest.csv").read_text().splitlines()[1:]} == {""}
    (_, images), *_ = generate(load_run(runs["conditional"]).module, 0, 1, 0, labels=torch.zeros(2))
    written = np.asarray(Image.open(folder / "000000.png"))
    assert np.array_equal(written, ((images[0, 0] + 1.0) * 127.5).round().byte().numpy())


@pytest.mark.parametrize("can_do", [Averages, Samples, Judges])
def test_what_a_family_can_do(runs, can_do):
    from lightning_modules.toy_classifier import ToyClassifier

    assert can(load_run(runs["conditional"]).module, can_do)
    assert not can(torch.nn.Linear(1, 1), can_do)
    assert not can(ToyClassifier(ConstantSchedule((8, 8), 8, 80), 0, (8, 8), ["Cyst"]), can_do)
    assert can(ToyClassifier(ConstantSchedule((8, 8), 8, 80), 0, (8, 8), ["Cyst"]), Clocked)


def test_betas_follow_the_clock(runs):
    groups = [
        state["param_groups"][0] for state in state_of(newest_checkpoint(runs["conditional"]))["optimizer_states"]
    ]
    assert [group["betas"] for group in groups] == [(0.0, pytest.approx(0.9 + 0.09 * 88 / 96))] * 2


def test_what_is_observed_is_recorded_and_not_minimised(runs):
    names = {
        name for row in read_rows(runs["conditional"] / "metrics.jsonl") for name in row if name.startswith("loss")
    }
    assert names == {"loss/discriminator/adversarial", "loss/discriminator/real_score", "loss/generator/adversarial"}


@pytest.mark.parametrize("family", ["conditional", "noisy"])
def test_image_is_a_function_of_seed_index_and_labels(runs, family):
    module = load_run(runs[family]).module
    rows = torch.eye(2)[[0, 1, 1, 0, 1]]
    together = module.sample(5, rows, seed=3, start=10)
    for i in range(5):
        torch.testing.assert_close(module.sample(1, rows[i : i + 1], seed=3, start=10 + i), together[i : i + 1])
    assert not torch.allclose(module.sample(5, rows.flip(1), seed=3, start=10), together)
    with pytest.raises(ValueError, match=r"labels of shape \(5, 3\): expected \(5, 2\)"):
        module.sample(5, torch.zeros(5, 3))


def test_noise_of_an_image_is_its_own(runs):
    module = load_run(runs["noisy"]).module
    latents, labels = torch.zeros(2, 4), torch.zeros(2, 2)
    from lightning_modules.networks.latents import sample_noise

    def images(start):
        return module.generator_ema.from_latents(latents, labels, noise=sample_noise(2, 0, start, "cpu"))

    assert not torch.allclose(images(0)[0], images(0)[1])
    torch.testing.assert_close(images(0)[1], images(1)[0])


def test_labels_are_drawn_from_the_rows_of_training(runs):
    module = load_run(runs["conditional"]).module
    rows = module.data_facts["label_rows"]
    assert sum(rows.values()) == module.data_facts["images"]["train"] == 40 and set(rows) <= {
        "Cyst",
        "Normal",
        "Stone",
        "Tumor",
    }
    drawn = module.sample_labels(4000, seed=1)
    shares = [rows["Normal"] / 40, rows["Cyst"] / 40]
    np.testing.assert_allclose(drawn.mean(dim=0).numpy(), shares, atol=4 * 0.5 / 4000**0.5)
    assert torch.equal(module.sample_labels(5, seed=1, start=100), drawn[100:105])


def test_generated_files_say_what_they_show(runs, tmp_path):
    run = runs["conditional"]
    module = load_run(run).module
    folder = generate_files(Request(run, COUNT, seed=2, output=tmp_path / "drawn")).folder
    with (folder / "manifest.csv").open(newline="") as file:
        shown = [row["labels"] for row in csv.DictReader(file)]
    drawn = module.sample_labels(COUNT, seed=2)
    assert shown == [{(1.0, 0.0): "Normal", (0.0, 1.0): "Cyst", (0.0, 0.0): ""}[tuple(row)] for row in drawn.tolist()]
    assert len(set(shown)) > 1
    asked = generate_files(Request(run, COUNT, seed=2, labels=("Cyst",), output=tmp_path / "asked")).folder
    assert {row.split(",")[-1] for row in (asked / "manifest.csv").read_text().splitlines()[1:]} == {"Cyst"}
    of_the_same = shown.index("Cyst")
    for i in (of_the_same, shown.index("Normal")):
        a, b = (np.asarray(Image.open(path / f"{i:06d}.png")) for path in (folder, asked))
        assert np.array_equal(a, b) == (i == of_the_same)


def test_label_that_the_family_is_not_told_is_refused(runs, tmp_path):
    with pytest.raises(ConfigError, match=r"no class 'Stone'; it has Normal, Cyst"):
        generate_files(Request(runs["conditional"], 2, labels=("Stone",), output=tmp_path))


def test_class_that_the_data_set_lacks_is_refused(tmp_path, capsys):
    assert verb.main(arguments("conditional", tmp_path, "module.classes=[Normal,Cist]")) == 2
    said = capsys.readouterr().err
    assert "module.classes: Phantoms has no class 'Cist'; did you mean 'Cyst'?" in said


def test_conditional_run_is_evaluated(runs):
    overrides = ["images=16", "replicates=10", "extractors.efficientnet_lite0=null"]
    folder = evaluate(str(runs["conditional"]), load_suite("quick", overrides))
    scores = json.loads((folder / "scores.json").read_text())["scores"]
    assert np.isfinite(next(row["value"] for row in scores if row["score"] == "frechet"))


def with_toys(monkeypatch):
    from lightning_modules.toy_conditional import Generator

    name = "lightning_modules.toy_conditional.Generator"
    monkeypatch.setattr(exported, "GENERATORS", {**exported.GENERATORS, name: Generator})


@pytest.mark.parametrize("family", ["conditional", "noisy"])
def test_export_makes_the_images_of_the_run(runs, tmp_path, monkeypatch, family):
    with_toys(monkeypatch)
    folder = export(runs[family], tmp_path / "export", with_onnx=False)
    said = json.loads((folder / "generator.json").read_text())
    assert said["format"] == 2 and said["labels"]["classes"] == ["Normal", "Cyst"]
    loaded, module = exported.load_generator(folder), load_run(runs[family]).module
    images = torch.cat([images for _, images in generate(module, 0, COUNT, 5)])
    assert torch.equal(loaded.sample(COUNT, seed=5), images)
    cysts = torch.tensor([0.0, 1.0])
    images = torch.cat([images for _, images in generate(module, 0, COUNT, 5, labels=cysts)])
    assert torch.equal(loaded.sample(COUNT, seed=5, labels=cysts), images)
    card = (folder / "README.md").read_text()
    assert "Normal, Cyst; as often as among the training images unless given" in card
    python = card.partition("```python\n")[2].partition("```")[0].replace("FOLDER", str(folder))
    scope: dict = {}
    exec(python, scope)
    first = torch.cat([images for _, images in generate(module, 0, 16, 0, labels=torch.tensor([1.0, 0.0]))])
    low, high = scope["values"].min(), scope["values"].max()
    assert torch.equal(scope["images"], first) and 0.0 <= low < high <= 1.0
    with pytest.raises(ValueError, match=r"labels of shape \(3,\): the network takes \(2,\)"):
        loaded.sample(1, labels=torch.zeros(3))


@pytest.mark.slow
def test_onnx_takes_labels_as_an_input(runs, tmp_path, monkeypatch):
    import onnxruntime

    with_toys(monkeypatch)
    folder = export(runs["conditional"], tmp_path / "export")
    session = onnxruntime.InferenceSession((folder / "generator.onnx").read_bytes())
    assert [value.name for value in session.get_inputs()] == ["latents", "labels"]
    latents, labels = torch.randn(3, 4), torch.eye(2)[[0, 1, 1]]
    (images,) = session.run(None, {"latents": latents.numpy(), "labels": labels.numpy()})
    torch.testing.assert_close(
        torch.from_numpy(images), exported.load_generator(folder)(latents, labels), atol=1e-4, rtol=0
    )


def test_onnx_of_a_network_that_draws_inside_is_refused(runs, tmp_path, monkeypatch):
    with_toys(monkeypatch)
    with pytest.raises(
        ConfigError, match="draws random numbers inside, which ONNX cannot: leave it out with --no-onnx"
    ):
        export(runs["noisy"], tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda labels: labels["classes"].append("Stone"),
            "the network takes 2 labels, described are 3",
        ),
        (lambda labels: labels.update(rows={}), "the network takes 2 labels, described are 2 without rows"),
        (lambda labels: labels.update(classes=[1, 2]), "does not say which labels there are"),
        (lambda labels: labels["rows"].update(Cyst=-1), "does not say which labels there are"),
        (lambda labels: labels.pop("rows"), "is no exported network"),
        (lambda labels: labels.update(rows=[3]), "does not say which labels there are"),
    ],
)
def test_labels_of_a_strangers_export_are_checked(runs, tmp_path, monkeypatch, change, said):
    with_toys(monkeypatch)
    folder = export(runs["conditional"], tmp_path / "export", with_onnx=False)
    description = json.loads((folder / "generator.json").read_text())
    change(description["labels"])
    (folder / "generator.json").write_text(json.dumps(description))
    with pytest.raises(exported.ExportError, match=said):
        exported.load_generator(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda own: own.pop("pool"), "process_state: holds mean_score instead of pool, mean_score"),
        (
            lambda own: own.update(pool=own["pool"][0]),
            "holds states of 1 and 2 processes",
        ),
        (
            lambda own: own.update(pool=own["pool"] * float("nan")),
            "process_state: pool holds values that are not finite",
        ),
        (lambda own: own.update(pool=own["pool"][:0]), "process_state: holds states of 0 and 1 processes"),
        (lambda own: own.update(pool="x"), "process_state: holds states of 0 and 1 processes"),
        (lambda own: own.update(pool=own["pool"].expand(2, -1, -1, -1, -1)), "holds states of 1 and 2 processes"),
        (
            lambda own: own.update({name: value.expand(3, *value.shape[1:]) for name, value in own.items()}),
            "pool is torch.float32",
        ),
    ],
)
def test_own_state_of_a_strangers_checkpoint_is_checked(runs, tmp_path, change, said):
    run = shutil.copytree(runs["conditional"], tmp_path / "run")
    checkpoint = newest_checkpoint(run)
    content = state_of(checkpoint)
    change(content["process_state"])
    torch.save(content, checkpoint)
    with pytest.raises(ConfigError, match=said):
        load_run(checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["conditional", "classifier"])
def test_plan_of_a_toy(tmp_path, capsys, family):
    assert verb.main(["--plan", *arguments(family, tmp_path), "budget=20s"]) == 0
    assert "32x32" in capsys.readouterr().out


# A classifier --------------------------------------------------------------------------------------------------------


def test_classifier_resumes_to_the_bit(runs, tmp_path):
    whole = runs["classifier"]
    assert state_of(newest_checkpoint(whole))["rate_drops"]  # else it would prove less
    first = state_of(newest_checkpoint(whole))["rate_drops"][0][0]
    assert_resumes(whole, tmp_path, lambda resume: trained("classifier", tmp_path, resume), first)


@pytest.mark.slow
def test_classifier_in_two_processes_resumes_to_the_bit(tmp_path):
    (tmp_path / "whole").mkdir()
    whole = in_two_processes("classifier", tmp_path / "whole")
    assert_resumes(whole, tmp_path, lambda resume: in_two_processes("classifier", tmp_path, resume), 48)


def test_highest_score_is_the_best_checkpoint(runs):
    rows = [row for row in read_rows(runs["classifier"] / "metrics.jsonl") if "score/accuracy" in row]
    best = max(rows, key=lambda row: row["score/accuracy"])  # the first of equal ones
    assert state_of(runs["classifier"] / "checkpoints" / "best.ckpt")["images_seen"] == best["images_seen"]
    assert best["score/accuracy"] > rows[0]["score/accuracy"]


def test_dropped_rate_is_used_and_recorded(runs):
    drops = state_of(newest_checkpoint(runs["classifier"]))["rate_drops"]
    scales = {
        row["images_seen"]: row["learning_rate_scale"]
        for row in read_rows(runs["classifier"] / "metrics.jsonl")
        if "learning_rate_scale" in row
    }
    for clock, scale in scales.items():
        assert scale == pytest.approx(0.1 ** sum(at <= clock - 8 for at, _ in drops))
    rate = state_of(newest_checkpoint(runs["classifier"]))["optimizer_states"][0]["param_groups"][0]["lr"]
    assert rate == pytest.approx(1e-2 * 0.1 ** sum(at <= 88 for at, _ in drops))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["callbacks.samples._target_=callbacks.sample_grid.SampleGrid"], "SampleGrid needs a family that samples"),
        (["callbacks.ema._target_=callbacks.ema.GeneratorEMA", "callbacks.ema.decay_per_step=0"], "that averages"),
        (["callbacks.health._target_=callbacks.health.Health"], "Health needs a family that judges"),
    ],
)
def test_callback_that_asks_for_more_than_the_family_can_is_refused(tmp_path, capsys, overrides, said):
    assert verb.main(arguments("classifier", tmp_path, *overrides)) == 2
    assert said in (err := capsys.readouterr().err) and "which ToyClassifier does not; set it to null" in err


def test_classifier_makes_no_images(runs, tmp_path):
    with pytest.raises(ConfigError, match="ToyClassifier makes no images from latents"):
        generate_files(Request(runs["classifier"], 2, output=tmp_path / "images"))
    with pytest.raises(ConfigError, match=r"ToyClassifier makes no images$"):
        export(runs["classifier"], tmp_path / "export", with_onnx=False)


@pytest.mark.parametrize("family", ["conditional", "classifier"])
def test_report_of_a_toy_is_written(runs, family):
    page = (runs[family] / "report.html").read_text()
    assert {"conditional": "random_conv", "classifier": "accuracy"}[family] in page
