"""A paper carried out: its file, its runs, its verdicts, and the whole study on phantoms."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, TINY_YAML, tiny_config

from experiments import reproduce
from experiments.configuration import files
from experiments.configuration.errors import ConfigError
from experiments.configuration.experiment import experiment_of
from experiments.configuration.files import PAPERS, shipped
from experiments.jobs import pool
from experiments.jobs.child import try_lock
from experiments.papers import page, runs
from experiments.papers.paper import Claim, Number, Paper, Row, Scale
from experiments.papers.study import Run, Settings, Study, load_study
from experiments.papers.verdicts import of_claim, of_number, score_of, spread
from experiments.record.loading import untrained
from experiments.running.parts import build
from experiments.running.training import train as train_run

FID, STAND_IN = "fid", "frechet_efficientnet_lite0"
FAKE = Path(__file__).parent / "fake_trial.py"


def study_of(tmp_path, parallel=1, changes=None, scale="small", about="less", seeds=(0, 1), images=44):
    """Return a study of two rows with tiny runs."""
    rows = {"a": Row("A", str(TINY_YAML)), "b": Row("B", str(TINY_YAML), {"module": {"generator_channels": 8}})}
    rows["c"] = Row("C", str(TINY_YAML))
    paper = Paper(
        name="sahakyan2024",
        title="T",
        images=images,
        ours="widths",
        score=FID,
        stand_in=STAND_IN,
        columns={FID: "FID", "printed": "FID as printed", STAND_IN: "learned"},
        rows=rows,
        numbers=(Number("a", "1", "x", 10.0), Number("a", "2", "y", 11.0, images=48), Number("c", "3", "z", 12.0)),
        claims=(Claim("a", "b", "2", images=48), Claim("b", "c", "3")),
        scales={"small": Scale(about, seeds, changes or {}, without=("c",))},
        variant="printed",
    )
    return Study(paper, Settings(scale, parallel, str(tmp_path)), ["tracking=disabled"])


@pytest.fixture
def behave(monkeypatch):
    """Return a function that lets runs behave as told, by folder; see ``fake_trial.py``."""
    monkeypatch.setattr(pool, "POLL_SECONDS", 0.02)

    def choose(of_folder):
        def command(self):
            return [sys.executable, str(FAKE), str(self.folder), of_folder.get(self.folder.name, "score 1")]

        monkeypatch.setattr(Run, "command", command)

    return choose


def starts(study):
    found = {run.folder.name: run.folder / "starts" for run in study.runs}
    return {name: len(path.read_text().splitlines()) if path.exists() else 0 for name, path in found.items()}


# The files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paper", shipped(PAPERS))
def test_every_scale_of_a_shipped_paper_can_be_built(paper, tmp_path):
    scales = files.load(paper, folder=PAPERS)["scales"]
    assert {"full", "small", "smoke"} <= scales.keys()
    for scale in scales:
        study = load_study(paper, [f"scale={scale}", f"runs_dir={tmp_path}"])
        assert bool(study.scale.about) == (scale != "full")
        for run in study.runs:
            build(experiment_of(study.configs[run]))


def test_every_number_of_sahakyans_chapter_4_is_there_with_its_epochs(tmp_path):
    paper = load_study("sahakyan2024", ["scale=full", f"runs_dir={tmp_path}"]).paper
    values = sorted(number.value for number in paper.numbers if number.value is not None)
    assert values == [64, 87, 89, 90, 97, 149, 262, 264]
    for number in paper.numbers:
        assert number.section
        config = files.load(paper.rows[number.row].experiment)
        if epochs := re.match(r"([\d,]+) epochs", number.after):
            clock = number.images or config["schedule"]["total_images"]
            assert clock == int(epochs[1].replace(",", "")) * paper.images
        if number.images is not None:
            assert number.images in config["callbacks"]["checkpoint"]["keep_at"]


def test_small_scale_is_what_the_study_needs(tmp_path):
    """The same images for all rows of a resolution, at least 3,000 generator updates at 64x64, two seeds."""
    study = load_study("sahakyan2024", ["scale=small", f"runs_dir={tmp_path}"])
    for run in study.runs:
        parts = build(experiment_of(study.configs[run]))
        cadence = next(phase.cadence for phase in parts.module.phases() if phase.name == "generator")
        small = parts.schedule.resolutions()[-1] == (64, 64)
        assert parts.schedule.total_images == (384_000 if small else 192_000)
        if small:
            assert cadence.steps(parts.schedule.total_images // parts.schedule.at(0).batch_size) >= 3_000
    assert {(run.row, run.seed) for run in study.runs} == {(row, seed) for row in study.rows for seed in (0, 1)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sahakyan"], "'sahakyan' is no paper; did you mean 'sahakyan2024'?"),
        (["sahakyan2024"], "name a scale: scale=full or scale=small or scale=smoke"),
        (["sahakyan2024", "scale=large"], "scale=large: sahakyan2024 has full, small, smoke"),
        (["sahakyan2024", "scale=smoke", "parallel=0"], "parallel=0: must be at least 1"),
        (["sahakyan2024", "scale=smoke", "inception=none.pth"], "inception=none.pth: there is no such file"),
        (["sahakyan2024", "scale=smoke", "trainer.device=3"], "did you mean 'devices'?"),
        (["sahakyan2024", "scale=full", "schedule.total_images=8"], "schedule.total_images: belongs to the paper's"),
        (["sahakyan2024", "scale=full", "seed=8"], "seed: belongs to the paper's scale"),
        (["sahakyan2024", "scale=full", "name=mine"], "name: belongs to the paper's scale"),
        (["sahakyan2024", "scale=full", "data.block_size=1"], "data.block_size: belongs to the paper's scale"),
        (["sahakyan2024", "scale=full"], "data.root is not set"),
        (["sahakyan2024", "scale=smoke", "--collect"], "none of its 10 runs has finished"),
        (["sahakyan2024.yaml", "scale=full"], "name a shipped paper (sahakyan2024)"),
    ],
)
def test_wrong_arguments_are_refused(arguments, said, tmp_path, capsys):
    assert reproduce.main([*arguments, f"runs_dir={tmp_path}"]) == 2
    assert said in capsys.readouterr().err


def test_a_paper_that_names_no_row_or_no_score_is_refused(tmp_path):
    paper = study_of(tmp_path).paper
    with pytest.raises(ValueError, match="rows: there is no d"):
        replace(paper, claims=(Claim("a", "d", "2"),))
    with pytest.raises(ValueError, match="columns: there is no kid"):
        replace(paper, score="kid")


def test_commands_are_those_of_runs(tmp_path, capsys):
    assert reproduce.main(["sahakyan2024", "scale=smoke", f"runs_dir={tmp_path}", "--commands"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and all("-m experiments.run" in line and "resume=auto" in line for line in lines)
    assert all(Path(line.split()[3]).is_file() for line in lines)


# Runs ----------------------------------------------------------------------------------------------------------------


def test_what_has_ended_is_not_run_again(tmp_path, behave):
    study = study_of(tmp_path, parallel=2)
    behave({"b_seed_1": "diverge"})
    assert runs.train(study) == 1
    assert runs.train(study) == 1  # it is still no whole study
    assert starts(study) == {"a_seed_0": 1, "a_seed_1": 1, "b_seed_0": 1, "b_seed_1": 1}
    assert [run.state() for run in study.runs_of("b")] == ["finished", "diverged"]
    assert study.runs_of("b")[1].directory() is None and study.runs_of("b")[0].directory() is not None


def test_a_failed_run_is_named_and_the_others_go_on(tmp_path, behave, capsys):
    study = study_of(tmp_path)
    behave({"a_seed_0": "crash out of luck"})
    assert runs.train(study) == 1
    assert "a_seed_0 failed: ValueError: out of luck" in capsys.readouterr().out
    assert sum(starts(study).values()) == 4
    behave({})
    assert runs.train(study) == 0
    assert starts(study)["a_seed_0"] == 2 and starts(study)["b_seed_0"] == 1


def test_an_interrupted_study_goes_on(tmp_path, behave, capsys):
    study = study_of(tmp_path)
    behave({"a_seed_1": "slow 1"})

    def interrupt():
        while not (tmp_path / "papers/sahakyan2024-small/runs/a_seed_1/worker").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert runs.train(study) == 85
    thread.join()
    assert starts(study) == {"a_seed_0": 1, "a_seed_1": 1, "b_seed_0": 0, "b_seed_1": 0}
    assert runs.train(study) == 0
    assert starts(study) == {"a_seed_0": 1, "a_seed_1": 2, "b_seed_0": 1, "b_seed_1": 1}
    assert "a_seed_1 goes on" in capsys.readouterr().out


def test_a_run_that_another_process_trains_is_left_to_it(tmp_path, behave, capsys):
    study = study_of(tmp_path)
    behave({})
    lock = try_lock(study.runs[0].folder / "lock")
    assert runs.train(study) == 0
    assert "a_seed_0 is trained by another process" in capsys.readouterr().out
    assert starts(study)["a_seed_0"] == 0
    lock.close()


def test_a_run_that_another_process_has_just_finished_is_not_run_again(tmp_path, behave, monkeypatch):
    study = study_of(tmp_path, seeds=(0,))
    behave({})
    assert runs.train(study) == 0
    seen = iter(["not begun", "not begun"])  # what was true when the list was made
    state = Run.state
    monkeypatch.setattr(Run, "state", lambda self: next(seen, None) or state(self))
    assert runs.train(study) == 0
    assert set(starts(study).values()) == {1}


def test_a_run_that_was_launched_by_hand_is_left_alone(tmp_path, behave, capsys):
    study = study_of(tmp_path)
    behave({})
    by_hand = study.runs[0].folder / "20261121"
    by_hand.mkdir(parents=True)
    (by_hand / "config.yaml").write_text("name: x\n")
    lock = try_lock(by_hand / ".lock")
    assert runs.train(study) == 0
    assert starts(study)["a_seed_0"] == 0 and "a_seed_0 is trained by another process" in capsys.readouterr().out
    lock.close()


def test_a_run_begun_beside_a_finished_one_hides_nothing(tmp_path, behave):
    study = study_of(tmp_path)
    behave({})
    assert runs.train(study) == 0
    later = study.runs[0].folder / "zz_later"
    later.mkdir()
    (later / "config.yaml").write_text("name: x\n")
    assert study.runs[0].state() == "finished" and study.runs[0].directory().name == "run"


def test_a_finished_run_with_other_settings_is_refused(tmp_path):
    study = study_of(tmp_path, seeds=(0,))
    run = study.runs[0]
    study.prepare()
    train_run(files.load(str(run.file), [*run.overrides, f"runs_dir={run.folder.parent}"]))
    assert study_of(tmp_path, seeds=(0,)).runs[0].directory() is not None
    with pytest.raises(ConfigError, match=r"trained with other settings.*module.latent_dim: was 100, is 7"):
        study_of(tmp_path, changes={"module": {"latent_dim": 7}}, seeds=(0,))


def test_the_untrained_family_is_the_one_that_a_run_begins_with(tmp_path):
    config = tiny_config("kidney_gan", tmp_path, "seed=3")
    torch.manual_seed(99)
    before = torch.get_rng_state()
    found, expected = untrained(config).state_dict(), build(experiment_of(config)).module.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    torch.manual_seed(99)
    assert torch.equal(torch.get_rng_state(), before)


# Verdicts -------------------------------------------------------------------------------------------------------------


def measured(*ranges, score=STAND_IN, images=44):
    """Return what the verdicts read of runs with these intervals (low, value, high)."""
    module = SimpleNamespace(data_facts={"images": {"train": images, "val": 0, "test": 0}})
    scores = [{score: {"low": low, "value": value, "high": high}} for low, value, high in ranges]
    return [SimpleNamespace(scores=of, trained=SimpleNamespace(module=module)) for of in scores]


def test_a_claim_holds_only_if_no_intervals_overlap(tmp_path):
    study = study_of(tmp_path, about="")

    def word(first, second):
        return of_claim(study, ("a", "b"), first, second).word

    low, high = measured((1, 2, 3), (2, 3, 4)), measured((5, 6, 7), (6, 7, 8))
    assert word(low, high) == "reproduced" and word(high, low) == "not reproduced"
    assert word(low, measured((5, 6, 7), (3.9, 5, 6))) == "undecided"
    assert word(low, []) == "not run"
    said = of_claim(study, ("a", "b"), low, high).sentence
    assert said.startswith("learned 2.5 against 6.5: lower for each of 2 seeds")
    assert "the spread of training is not known" in of_claim(study, ("a", "b"), low[:1], high).sentence
    assert "seed 0 (not begun)" in said  # no run of the study lies here


def test_a_claim_at_a_smaller_scale_or_on_other_data_is_not_called_reproduced(tmp_path):
    low, high = measured((1, 2, 3)), measured((5, 6, 7))
    assert of_claim(study_of(tmp_path), ("a", "b"), low, high).word == "same direction here"
    assert of_claim(study_of(tmp_path), ("a", "b"), high, low).word == "other direction here"
    other = measured((1, 2, 3), images=40)
    assert of_claim(study_of(tmp_path, about=""), ("a", "b"), other, high).word == "same direction here"
    some_unreadable = measured((1, 2, 3), images=4370)
    assert of_claim(study_of(tmp_path, about="", images=4400), ("a", "b"), some_unreadable, high).word == "reproduced"


def test_without_intervals_nothing_is_decided(tmp_path):
    bare = measured((1, 1, 1))
    del bare[0].scores[STAND_IN]["low"], bare[0].scores[STAND_IN]["high"]
    assert of_claim(study_of(tmp_path), ("a", "b"), bare, measured((5, 6, 7))).word == "undecided"
    assert str(spread(bare, STAND_IN)) == "1"


def test_a_number_is_compared_only_with_its_like(tmp_path):
    number = Number("a", "1", "x", 100.0)
    small, same = study_of(tmp_path), study_of(tmp_path, about="")
    near, far = measured((100, 105, 110), score=FID), measured((120, 125, 130), score=FID)
    assert of_number(small, number, []) == of_number(same, number, [])
    assert "seed 0 not begun" in of_number(small, number, []).sentence
    assert of_number(small, Number("c", "1", "x", 1.0), []).sentence == "Left out at scale small."
    verdict = of_number(small, number, near)
    assert verdict.word == "not comparable" and "scale small" in verdict.sentence
    assert "weights of its extractor were not at hand" in of_number(same, number, measured((1, 2, 3))).sentence
    refused = measured((1, 2, 3), score=FID)
    refused[0].scores[FID] = {"value": None, "refused": "too few images"}
    assert "no FID (too few images)" in of_number(same, number, refused).sentence
    other_data = of_number(same, number, measured((100, 105, 110), score=FID, images=40))
    assert other_data.word == "not comparable" and "40 images of data instead of 44" in other_data.sentence
    assert of_number(same, number, near).word == "reproduced"
    assert of_number(same, number, far).word == "not reproduced"
    assert of_number(same, Number("a", "1", "x"), near).sentence.startswith("The paper gives no score.")
    far[0].scores["printed"] = {"low": 95, "value": 99, "high": 103}
    verdict = of_number(same, number, far)
    assert verdict.word == "reproduced" and "but FID as printed is: 99" in verdict.sentence


def test_rows_are_compared_by_the_papers_score_if_all_have_it(tmp_path):
    study, fid, learned = study_of(tmp_path), measured((1, 2, 3), score=FID), measured((1, 2, 3))
    assert score_of(study, {"a": fid}) == FID and score_of(study, {"a": fid, "b": []}) == FID
    assert score_of(study, {"a": fid, "b": learned}) == STAND_IN and score_of(study, {}) == STAND_IN
    of_two = spread(measured((1, 2, 3), (3, 4, 6)), STAND_IN)
    assert (of_two.mean, of_two.low, of_two.high) == (3, 1, 6) and str(of_two) == "3 (2, 4), 1 to 6"
    assert spread([*fid, *learned], FID) is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study whose runs a and b are trained, a with a checkpoint kept at 48 of its 96 images."""
    folder = tmp_path_factory.mktemp("study")
    changes = {"callbacks": {"checkpoint": {"keep_at": [48]}}, "data": {"count": 60}}
    study = study_of(folder, changes=changes, seeds=(0,), about="")
    assert study.prepare() == ["efficientnet_lite0", "random_conv"]
    for run in study.runs:
        train_run(files.load(str(run.file), [*run.overrides, f"runs_dir={run.folder.parent}"]))
    return study


def test_a_number_is_taken_at_its_clock(trained):
    findings = page.find(trained)
    clocks = [[one.trained.module.images_seen for one in found] for _, found, _ in findings.numbers]
    assert clocks == [[96], [48], []]
    first, second = (findings.numbers[i][1][0].scores[STAND_IN]["value"] for i in (0, 1))
    assert first != second
    assert trained.measure(trained.runs[0]) is findings.rows["a"][0]  # loaded once, for all that needs it
    assert findings.numbers[2][2].word == "not run" and findings.claims[1][1].word == "not run"
    kept = next((trained.runs[0].directory() / "checkpoints").glob("kept_*"))
    kept.rename(kept.with_suffix(".gone"))
    try:
        assert trained.measure(trained.runs[0], 48) is None
    finally:
        kept.with_suffix(".gone").rename(kept)


@pytest.mark.usefixtures("drawn")
def test_the_table_has_every_number_and_how_it_was_taken(trained):
    findings = page.find(trained)
    lines = page.write(trained, findings, ["<p>own part</p>"])
    rows = list(csv.DictReader((trained.folder / "numbers.csv").open()))
    assert [row["paper"] for row in rows] == ["10.0", "11.0", "12.0"]
    assert [row["verdict"] for row in rows] == ["not comparable", "not comparable", "not run"]
    assert rows[0]["extractor"] == "efficientnet_lite0" and rows[0]["score_of_verdict"] == STAND_IN
    assert len(rows[0]["weights_sha256"]) == 64 and rows[2][STAND_IN] == ""
    assert float(rows[0][f"{STAND_IN}_low"]) <= float(rows[0][STAND_IN]) <= float(rows[0][f"{STAND_IN}_high"])
    html = (trained.folder / "report.html").read_text()
    assert "own part" in html and "Left out at this scale: C." in html
    assert any("not run. Left out at scale small." in line for line in lines)


# The whole ------------------------------------------------------------------------------------------------------------


def smoke(folder):
    command = [sys.executable, "-m", "experiments.reproduce", "sahakyan2024", "scale=smoke", "parallel=2"]
    return subprocess.run(
        [*command, f"runs_dir={folder}", "tracking=disabled"], cwd=ROOT, capture_output=True, text=True, timeout=1500
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sahakyan_from_training_to_the_report(tmp_path):
    done = smoke(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "papers" / "sahakyan2024-smoke"
    rows = list(csv.DictReader((folder / "numbers.csv").open()))
    assert [row["paper"] for row in rows] == "64.0 264.0 262.0 97.0 90.0 89.0 87.0 149.0".split() + [""] * 3
    assert {row["verdict"] for row in rows} == {"not comparable"}
    html = (folder / "report.html").read_text()
    assert html.count("<h3>Edges</h3>") == 10 and html.count("<h3>The kernel's effect</h3>") == 4
    assert "reproduced<" not in html and html.count("direction here<") + html.count("undecided<") == 12
    assert "http" not in re.sub(r"base64,[^\"]*", "", html)
    # A study that has been carried out is reported again, and nothing else.
    scores = sorted((folder / "scores").iterdir())
    before = {path: path.read_bytes() for path in scores}
    again = smoke(tmp_path)
    assert again.returncode == 0 and "10 of 10 runs have ended" in again.stdout and "starts" not in again.stdout
    assert {path: path.read_bytes() for path in scores} == before
    assert json.loads((folder / "scores" / "small_seed_0.jsonl").read_text().splitlines()[0])["rows"]
