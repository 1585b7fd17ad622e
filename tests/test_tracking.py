"""The record and its mirror: rows without gaps or repeats, and W&B that never asks or waits."""

import json
import logging
import resource

import pytest
from conftest import run_cli, tiny, tiny_config

from callbacks.files import Rows, append_rows
from experiments.evaluation.subject import Subject, real_data
from experiments.measuring.settings import Suite
from experiments.record import tracking
from experiments.record.loading import load_run
from experiments.record.tracking import read_rows
from experiments.running import training
from experiments.running.training import train


def test_rows_that_a_resume_has_overtaken_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for row in (
        {"images_seen": 8, "x": 1},
        {"images_seen": 16, "x": 2},
        {"images_seen": 24, "x": 3},
        {"resumed_at": 16},
        {"images_seen": 24, "x": 4},
        {"resumed_at": -1},
        {"images_seen": 8, "x": 5},
    ):
        append_rows(path, [row])
    assert [row["x"] for row in read_rows(path)] == [5]
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    assert [row["x"] for row in read_rows(path)] == [1, 2, 4]


def test_torn_row_costs_only_itself(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_rows(path, [{"images_seen": 8}])
    with path.open("a") as file:
        file.write('{"images_seen": 16, "lo')
    append_rows(path, [{"images_seen": 24}])
    assert [row["images_seen"] for row in read_rows(path)] == [8, 24]


def test_rows_that_a_full_disk_cuts_short_are_written_once(tmp_path):
    """A limit on the size of files stands in for the disk: it takes what fits, too, before it refuses."""
    rows = Rows(tmp_path / "metrics.jsonl")
    rows.append({"images_seen": 8})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for clock, room in ((16, 30), (24, 50)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
            rows.append({"images_seen": clock})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    rows.append({"images_seen": 32})
    assert [row["images_seen"] for row in read_rows(rows.path)] == [8, 16, 24, 32]


def test_missing_record_is_empty(tmp_path):
    assert read_rows(tmp_path / "metrics.jsonl") == []


@pytest.fixture
def wandb_offline(monkeypatch):
    import wandb

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    yield wandb
    wandb.teardown()


def history(directory):
    """Folders that W&B wrote offline, one per start of the run."""
    return sorted(directory.glob("wandb/offline-run-*"))


def test_run_is_mirrored_offline_under_its_own_id(tmp_path, wandb_offline, monkeypatch):
    rows, pictures, initial = [], [], {}
    init = wandb_offline.init

    def spy(**arguments):
        initial.update(arguments)
        run = init(**arguments)
        log = run.log

        def record(data, *more, **keywords):
            (pictures if "samples" in data else rows).append(data)
            assert not more and "step" not in keywords
            return log(data, *more, **keywords)

        run.log = record
        return run

    monkeypatch.setattr(wandb_offline, "init", spy)
    directory = train(tiny_config("dcgan", tmp_path, "tracking=offline"))
    (folder,) = history(directory)
    assert folder.name.endswith(directory.name)
    assert initial["id"] == directory.name and initial["mode"] == "offline" and initial["resume"] == "allow"
    assert initial["config"]["module"]["_target_"] == "lightning_modules.dcgan.DCGAN"
    record = [
        {key: value for key, value in row.items() if key != "time"} for row in read_rows(directory / "metrics.jsonl")
    ]
    assert rows == record
    assert [picture["images_seen"] for picture in pictures] == [40, 80, 96]


def test_resumed_run_keeps_its_wandb_id(tmp_path, wandb_offline):
    first = train(tiny_config("dcgan", tmp_path, "tracking=offline"))
    (first / "status.json").write_text('{"state": "running"}')
    wandb_offline.teardown()
    assert train(tiny_config("dcgan", tmp_path, "tracking=offline", "resume=auto")) == first
    assert len(history(first)) == 2
    # Not the folders' names: W&B adds to the second of two that were begun within one second.
    assert {file.name for file in first.glob("wandb/offline-run-*/*.wandb")} == {f"run-{first.name}.wandb"}


def test_online_without_key_or_terminal_falls_back_at_once(tmp_path, caplog, wandb_offline, monkeypatch):
    caplog.set_level(logging.WARNING)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    directory = train(tiny_config("dcgan", tmp_path, "tracking=online", "schedule.total_images=8"))
    assert "W&B is not reachable" in caplog.text and "wandb sync" in caplog.text
    assert json.loads((directory / "status.json").read_text())["state"] == "finished"
    assert history(directory)


@pytest.mark.parametrize("recorded", [False, True], ids=["new run", "run of an older version"])
def test_run_that_was_tracked_online_is_loaded_and_compared_with(tmp_path, monkeypatch, recorded):
    monkeypatch.setattr(training, "wandb_logger", lambda *_: None)
    directory = train(tiny_config("dcgan", tmp_path, "tracking=online", "schedule.total_images=8"))
    config = directory / "config.yaml"
    assert "tracking" not in config.read_text()
    if recorded:
        config.write_text(config.read_text() + "tracking: online\n")
    trained = load_run(directory)
    assert trained.config["name"] == "dcgan" and "tracking" not in trained.config
    suite = Suite({}, 8, 10, against=str(directory))
    assert real_data(suite, Subject(tmp_path, None)).size("train") == 40
    assert (
        train(tiny_config("dcgan", tmp_path, "tracking=disabled", "schedule.total_images=8", f"resume={directory}"))
        == directory
    )


def test_wandb_that_cannot_be_imported_does_not_stop_a_run(tmp_path, caplog, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    assert tracking.wandb_logger(tmp_path, "offline", "p", {"name": "x"}) is None
    assert "metrics.jsonl is complete without it" in caplog.text


class BrokenRun:
    """A W&B run whose every call fails, as when its service has died."""

    def __init__(self):
        self.calls = []

    def define_metric(self, *_, **__):
        pass

    def __getattr__(self, name):
        def call(*_, **__):
            self.calls.append(name)
            raise BrokenPipeError(f"no service for {name}")

        return call


def test_wandb_that_fails_while_a_run_trains_does_not_stop_it(tmp_path, caplog, monkeypatch):
    import wandb

    broken = BrokenRun()
    monkeypatch.setattr(wandb, "init", lambda **_: broken)
    directory = train(tiny_config("dcgan", tmp_path, "tracking=offline"))
    assert json.loads((directory / "status.json").read_text())["state"] == "finished"
    assert {"log", "finish"} <= set(broken.calls)
    assert "W&B failed (no service for finish)" in caplog.text


def test_wandb_that_fails_at_the_end_does_not_hide_why_a_run_failed(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **_: BrokenRun())
    monkeypatch.setattr(training, "fit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tiny_config("dcgan", tmp_path, "tracking=offline"))


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_wandb_that_cannot_begin_at_all_does_not_stop_a_run(tmp_path, caplog, monkeypatch, mode):
    import wandb

    tried = []

    def init(mode, **_):
        tried.append(mode)
        raise wandb.Error("no\nluck")

    monkeypatch.setattr(wandb, "init", init)
    assert tracking.wandb_logger(tmp_path, mode, "p", {"name": "x"}) is None
    assert tried == list(dict.fromkeys([mode, "offline"]))
    assert "W&B cannot write offline (no); the record in metrics.jsonl is complete without it" in caplog.text


@pytest.mark.slow
def test_a_key_in_the_environment_does_not_upload(tmp_path):
    """Offline is the default: only tracking=online may send patient images anywhere."""
    done = run_cli(
        *tiny("dcgan", tmp_path, "tracking=offline", "schedule.total_images=8"),
        WANDB_API_KEY="0" * 40,
        WANDB_MODE="online",
    )
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "runs" / "dcgan").iterdir()
    assert history(directory)
    assert "0" * 40 not in (directory / "log.txt").read_text()
