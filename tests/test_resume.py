"""A run that goes on from a checkpoint ends with the weights of the run that was never interrupted, bit for bit."""

import json
import shutil

import pytest
import torch
from conftest import assert_same_state, newest_checkpoint, run_cli, tiny, tiny_config

from callbacks.environment import record
from experiments.record.report import write_report
from experiments.record.run_directory import create
from experiments.record.tracking import read_rows
from experiments.running.training import train

# A pass over 40 images ends at clock 40, where a batch of 8 ends as well; 24 lies in the middle of the first pass. The
# growing run has stages that begin at 24 and 64; 32 and 72 lie in their fades.
CLOCKS = {"pass boundary": 40, "mid-pass": 24, "stage border": 64, "fade": 72, "fade before a border": 32}
STOPS = {
    "dcgan": ("pass boundary", "mid-pass"),
    "wgan_gp": ("pass boundary", "mid-pass"),
    "kidney_gan": ("mid-pass",),
    "progressive": ("stage border", "fade", "fade before a border"),
}
QUICK = [
    ("dcgan", "mid-pass", 2, 1),
    ("wgan_gp", "pass boundary", 0, 1),
    ("kidney_gan", "mid-pass", 0, 1),
    ("progressive", "fade", 2, 1),
    ("progressive", "fade before a border", 0, 1),
    ("progressive", "stage border", 0, 1),
]
# All pairs of values of two axes are in these cells, which every change runs; the others are make test-full's.
PAIRS = [
    *QUICK,
    ("dcgan", "mid-pass", 0, 2),
    ("dcgan", "pass boundary", 0, 1),
    ("dcgan", "pass boundary", 2, 2),
    ("wgan_gp", "pass boundary", 2, 2),
    ("wgan_gp", "mid-pass", 2, 1),
    ("wgan_gp", "mid-pass", 0, 2),
    ("kidney_gan", "mid-pass", 2, 2),
    ("progressive", "fade", 0, 2),
    ("progressive", "fade before a border", 2, 2),
    ("progressive", "stage border", 2, 2),
    ("wgan", "mid-pass", 0, 1),
    ("progressive_r1", "fade", 0, 1),
]
MATRIX = [
    (family, stop, workers, devices)
    for family, stops in STOPS.items()
    for stop in stops
    for workers in (0, 2)
    for devices in (1, 2)
]
MATRIX += [("wgan", "mid-pass", 0, 1), ("progressive_r1", "fade", 0, 1)]


def run(family, folder, devices, *overrides):
    """Run in this process, or with several through the command line; return the run directory."""
    if devices == 1:
        return train(tiny_config(family, folder, *overrides))
    done = run_cli(*tiny(family, folder, f"trainer.devices={devices}", *overrides))
    assert done.returncode == 0, done.stderr
    (directory,) = (folder / "runs" / family).iterdir()
    return directory


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Uninterrupted runs, one per (family, number of processes), with a checkpoint after every batch."""
    runs = {}

    def get(family, devices):
        if (family, devices) not in runs:
            runs[family, devices] = run(family, tmp_path_factory.mktemp(f"{family}-{devices}"), devices)
        return runs[family, devices]

    return get


def without_times(path):
    """Rows of a record; those of a resumed run show no gap and no repeat."""
    changing = ("time", "speed/images_per_second")
    return [{key: value for key, value in row.items() if key not in changing} for row in read_rows(path)]


def marked(cell):
    return pytest.param(*cell, marks=[] if cell in QUICK else pytest.mark.slow if cell in PAIRS else pytest.mark.full)


def test_pairs_of_values_of_two_axes_are_all_among_the_cells():
    def pairs(cells):
        axes = [(cell[:2], *cell[2:]) for cell in cells]  # where a run can be stopped depends on its family
        return {(i, j, cell[i], cell[j]) for cell in axes for i, j in ((0, 1), (0, 2), (1, 2))}

    assert set(PAIRS) < set(MATRIX) and pairs(PAIRS) == pairs(MATRIX)


@pytest.mark.parametrize("family, stop, workers, devices", list(map(marked, MATRIX)))
def test_resumed_run_equals_uninterrupted_run(whole_run, tmp_path, family, stop, workers, devices):
    whole = whole_run(family, devices)
    part = tmp_path / "runs" / family / whole.name
    shutil.copytree(whole, part)
    checkpoint = part / "checkpoints" / f"images_{CLOCKS[stop]:012d}.ckpt"
    for path in part.glob("checkpoints/*.ckpt"):
        if path != checkpoint:
            path.unlink()
    assert run(family, tmp_path, devices, f"data.num_workers={workers}", f"resume={checkpoint}") == part
    assert_same_state(newest_checkpoint(part), newest_checkpoint(whole))
    last = "samples/images_000000000096.png"
    assert (part / last).read_bytes() == (whole / last).read_bytes()
    for name in ("metrics.jsonl", "scores.jsonl"):
        assert without_times(part / name) == without_times(whole / name)


def test_checkpoint_of_an_older_version_goes_on_to_the_same_bits(whole_run, tmp_path):
    """Without what this version has added; the best score is of a stage that no longer competes."""
    whole = whole_run("progressive", 1)
    part = tmp_path / "runs" / "progressive" / whole.name
    shutil.copytree(whole, part)
    checkpoint = part / "checkpoints" / "images_000000000072.ckpt"
    for path in part.glob("checkpoints/*.ckpt"):
        if path != checkpoint:
            path.unlink()
    content = torch.load(checkpoint, weights_only=True)
    del content["rate_drops"], content["process_state"]
    content["data_facts"].pop("label_rows", None)
    content["callbacks"]["PeriodicCheckpoint"]["best"] = {"score/frechet_random_conv 0a": 1e-9}
    torch.save(content, checkpoint)
    shutil.copy(checkpoint, part / "checkpoints" / "best.ckpt")
    assert run("progressive", tmp_path, 1, f"resume={checkpoint}") == part
    assert_same_state(newest_checkpoint(part), newest_checkpoint(whole))
    assert torch.load(part / "checkpoints" / "best.ckpt", weights_only=True)["images_seen"] == 96


def test_best_checkpoint_of_an_older_version_that_had_grown_stays_the_one_to_beat(whole_run, tmp_path):
    whole = whole_run("progressive", 1)
    part = tmp_path / "runs" / "progressive" / whole.name
    shutil.copytree(whole, part)
    checkpoint = part / "checkpoints" / "images_000000000088.ckpt"  # faded in since 84
    content = torch.load(checkpoint, weights_only=True)
    newest = torch.load(newest_checkpoint(whole), weights_only=True)
    (kind,) = newest["callbacks"]["PeriodicCheckpoint"]["best"]
    content["callbacks"]["PeriodicCheckpoint"]["best"] = {kind.removesuffix(" grown"): 1e-9}
    torch.save(content, checkpoint)
    shutil.copy(checkpoint, part / "checkpoints" / "best.ckpt")
    run("progressive", tmp_path, 1, f"resume={checkpoint}")
    assert torch.load(part / "checkpoints" / "best.ckpt", weights_only=True)["images_seen"] == 88


def test_pass_of_the_tiny_run_is_forty_images(whole_run):
    lines = (whole_run("dcgan", 1) / "log.txt").read_text().splitlines()
    assert next(line for line in lines if line.lstrip().startswith("train ")).split()[1] == "40"


def test_worker_processes_do_not_change_the_result(whole_run, tmp_path):
    other = run("dcgan", tmp_path, 1, "data.num_workers=2")
    assert_same_state(newest_checkpoint(other), newest_checkpoint(whole_run("dcgan", 1)))


# What computes -----------------------------------------------------------------------------------------------------


def warnings_of(caplog):
    said = [message for message in caplog.messages if message.startswith("what computes is not what computed")]
    caplog.clear()
    return said


@pytest.mark.slow
def test_other_number_of_threads_is_warned_of_once_and_gives_other_bits(whole_run, tmp_path, caplog):
    whole = whole_run("dcgan", 1)
    part = tmp_path / "runs" / "dcgan" / whole.name
    shutil.copytree(whole, part)

    def go_on(clock):
        caplog.clear()
        resume = f"resume={part / 'checkpoints' / f'images_{clock:012d}.ckpt'}"
        train(tiny_config("dcgan", tmp_path, resume, "callbacks.score=null"))
        return warnings_of(caplog)

    assert go_on(88) == []
    assert_same_state(newest_checkpoint(part), newest_checkpoint(whole))
    torch.set_num_threads(2)
    try:
        (said,) = go_on(64)
        assert "checkpoint at images_seen=64; the run goes on, but its weights may not be" in said
        assert said.endswith("to the bit: threads (OMP_NUM_THREADS): was 1, is 2")
        with pytest.raises(AssertionError):
            assert_same_state(newest_checkpoint(part), newest_checkpoint(whole))
        assert go_on(88) == []  # which two threads have written
    finally:
        torch.set_num_threads(1)
    recorded = json.loads((part / "versions.json").read_text())
    assert [recorded["threads"], recorded["from_images_seen"]] == [2, 64]
    assert [(before["threads"], before["from_images_seen"]) for before in recorded["before"]] == [(1, 0)]


NOW = {"torch": "2.14.1", "threads": 4, "processor": "A", "processes": 2, "git_commit": "b", "platform": "here"}


@pytest.mark.parametrize(
    "then, said",
    [
        ({}, []),
        ({"git_commit": "a", "platform": "there"}, []),  # decide no bits
        ({"threads": 1}, ["threads (OMP_NUM_THREADS): was 1, is 4"]),
        ({"torch": "2.13.0", "processor": "B"}, ["processor: was 'B', is 'A'", "torch: was '2.13.0', is '2.14.1'"]),
        ({"processes": 1}, ["processes (trainer.devices x trainer.num_nodes): was 1, is 2"]),
    ],
)
def test_only_what_decides_bits_is_compared(then, said, tmp_path):
    path = tmp_path / "versions.json"
    assert record(path, 0, {**NOW, **then}) == []  # a new run
    assert record(path, 40, NOW) == said
    assert record(path, 80, NOW) == []


def test_checkpoint_is_compared_with_the_part_that_wrote_it(tmp_path):
    path, other = tmp_path / "versions.json", {**NOW, "threads": 1}
    assert record(path, 0, NOW) == []
    assert len(record(path, 40, other)) == 1
    assert len(record(path, 40, other)) == 1  # killed before it wrote one: the checkpoint is still the first part's
    assert record(path, 48, other) == [] and json.loads(path.read_text())["from_images_seen"] == 40
    assert len(record(path, 56, NOW)) == 1
    assert [part["from_images_seen"] for part in json.loads(path.read_text())["before"]] == [0, 40]
    assert record(path, 32, NOW) == [] and json.loads(path.read_text())["before"] == []
    assert record(path, 0, other) == []  # anew


def test_run_of_an_earlier_version_gives_no_false_alarm(tmp_path):
    path = tmp_path / "versions.json"
    path.write_text(json.dumps({"python": "3.11.7", "torch": "2.14.1"}))
    assert record(path, 40, NOW) == []
    path.write_text(json.dumps({"python": "3.11.7", "torch": "2.13.0"}))
    assert record(path, 40, NOW) == ["torch: was '2.13.0', is '2.14.1'"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "[" * 100_000, "\xff", '{"before": 3}', '{"before": [[], 3, {}]}', '{"from_images_seen": "x"}', "null"],
    ids=range(8),
)
def test_versions_of_a_stranger_do_not_stop_a_resume(text, tmp_path):
    path = tmp_path / "versions.json"
    path.write_bytes(text.encode("latin-1"))
    assert record(path, 40, NOW) == []
    assert record(path, 80, {**NOW, "threads": 1}) == ["threads (OMP_NUM_THREADS): was 4, is 1"]


def test_versions_that_cannot_be_replaced_are_refused_and_others_are_reported_as_they_are(tmp_path):
    (tmp_path / "versions.json").mkdir()
    with pytest.raises(OSError, match=r"versions\.json"):
        create(tmp_path, {"name": "x"})
    (tmp_path / "versions.json").rmdir()
    (tmp_path / "versions.json").write_bytes(b"\xff<b>")
    create(tmp_path, {"name": "x"})
    assert "\ufffd&lt;b&gt;" in write_report(tmp_path).read_text()


OTHERWISE = {
    "augmented": ["data.augmentation.preset=kidney_ct", "data.augmentation.flip_lr=0.5"],
    "bf16": ["trainer.precision=bf16-mixed"],
}


@pytest.mark.parametrize("how", OTHERWISE)
def test_run_that_is_otherwise_resumes_to_the_bit_with_other_workers(whole_run, tmp_path, how):
    whole = run("progressive", tmp_path / "whole", 1, *OTHERWISE[how])
    with pytest.raises(AssertionError):
        assert_same_state(newest_checkpoint(whole_run("progressive", 1)), newest_checkpoint(whole))
    part = tmp_path / "runs" / "progressive" / whole.name
    shutil.copytree(whole, part)
    checkpoint = part / "checkpoints" / "images_000000000072.ckpt"
    run("progressive", tmp_path, 1, *OTHERWISE[how], "data.num_workers=2", f"resume={checkpoint}")
    assert_same_state(newest_checkpoint(part), newest_checkpoint(whole))


def test_loaded_checkpoint_is_at_the_stage_and_alpha_of_its_clock_without_any_callback(whole_run):
    import torch

    from experiments.configuration import files
    from experiments.configuration.experiment import experiment_of
    from experiments.running.parts import build

    directory = whole_run("progressive", 1)
    parts = build(experiment_of(files.load(str(directory / "config.yaml"))))
    for clock, stage, alpha in ((24, 1, 0.0), (32, 1, 0.4), (64, 2, 0.0), (72, 2, 0.4), (96, 2, 1.0)):
        state = torch.load(directory / "checkpoints" / f"images_{clock:012d}.ckpt", weights_only=True)
        parts.module.on_load_checkpoint(state)
        parts.module.load_state_dict(state["state_dict"])
        assert (parts.module.generator_ema.stage, parts.module.generator_ema.alpha) == (stage, alpha)
        assert parts.module.sample(2).shape == (2, 1, 5 << stage, 4 << stage)


def test_grid_in_a_fade_shows_what_the_checkpoint_of_its_clock_holds(whole_run, tmp_path):
    import torch

    from callbacks.sample_grid import enlarged, write_grid
    from experiments.configuration import files
    from experiments.configuration.experiment import experiment_of
    from experiments.running.parts import build

    directory = whole_run("progressive", 1)
    module = build(experiment_of(files.load(str(directory / "config.yaml")))).module
    state = torch.load(directory / "checkpoints" / "images_000000000040.ckpt", weights_only=True)
    module.on_load_checkpoint(state)
    module.load_state_dict(state["state_dict"])
    write_grid(enlarged(module.sample(4, seed=0)), tmp_path / "grid.png", 2)
    assert (tmp_path / "grid.png").read_bytes() == (directory / "samples" / "images_000000000040.png").read_bytes()


def test_another_seed_changes_the_result(whole_run, tmp_path):
    other = run("dcgan", tmp_path, 1, "seed=1")
    with pytest.raises(AssertionError):
        assert_same_state(newest_checkpoint(other), newest_checkpoint(whole_run("dcgan", 1)))


def test_checkpoints_load_with_weights_only(whole_run):
    import torch

    state = torch.load(newest_checkpoint(whole_run("wgan_gp", 1)), weights_only=True)
    assert state["images_seen"] == 96
    assert state["data_facts"]["intensity"]["bits"] == 8
    assert not any(key.startswith("extractor") for key in state["state_dict"])
