"""Trials as process trees: what ends them, what they cost, and who takes them over. Fake runs, real processes."""

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT
from optuna.trial import TrialState
from test_sweep import sweep_file

from experiments.configuration.errors import ConfigError
from experiments.jobs import pool
from experiments.jobs.child import reason, try_lock
from experiments.jobs.devices import device_slots
from experiments.pages.text import csv_cell
from experiments.sweeps import runner
from experiments.sweeps.folder import prepare, trial_name
from experiments.sweeps.optuna_engine import Study
from experiments.sweeps.runner import Runner
from experiments.sweeps.settings import load_sweep
from experiments.sweeps.values import value_of

FAKE = Path(__file__).parent / "fake_trial.py"
SEEDS = {"seed": {"int": [0, 99]}}


@pytest.fixture
def sweep_of(tmp_path, monkeypatch):
    """Return a function that makes a sweep whose trials behave as told, by number."""
    monkeypatch.setattr(pool, "POLL_SECONDS", 0.02)

    def make(*behaviours, space=SEEDS, **settings):
        def command(sweep, number, assignment):
            folder = sweep.folder / "trials" / trial_name(number)
            return [sys.executable, str(FAKE), str(folder), behaviours[number % len(behaviours)]]

        monkeypatch.setattr(runner, "trial_command", command)
        settings = {"trials": len(behaviours), "method": "random", **settings}
        return load_sweep(sweep_file(tmp_path, space, **settings))

    return make


def table(sweep):
    return list(csv.DictReader((sweep.folder / "trials.csv").open()))


def starts(sweep, number):
    path = sweep.folder / "trials" / trial_name(number) / "starts"
    return path.read_text().splitlines() if path.exists() else []


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.mark.usefixtures("drawn")
def test_whatever_happens_costs_one_trial_and_has_its_reason(sweep_of, capsys):
    sweep = sweep_of(
        "score 3 2",
        "crash =1+1",
        "memory",
        "diverge",
        "refuse",
        "die",
        "silent",
        "score 3 NaN",
        "score 3 1",
        parallel=3,
    )
    assert Runner(sweep).run() == 0
    rows = table(sweep)
    assert [row["state"] for row in rows] == ["complete", *["fail"] * 7, "complete"]
    assert [row["reason"] for row in rows[1:8]] == [
        "ValueError: =1+1 (exit code 1)",
        "out of memory: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "diverged: loss 'g' was NaN at images_seen=8.",
        "wrong configuration or data: a=1: wrong; b=2: wrong",
        "killed by SIGKILL (often: out of memory)",
        "score/frechet_random_conv is not in metrics.jsonl; there are none",
        "score/frechet_random_conv was not finite",
    ]
    assert [row["value"] for row in rows if row["state"] == "complete"] == ["2.0", "1.0"]
    assert all(len(starts(sweep, number)) == 1 for number in range(9))
    said = capsys.readouterr().out
    assert "best: trial_0008, score/frechet_random_conv = 1" in said and "best.yaml" in said
    assert (sweep.folder / "best.yaml").read_text().splitlines()[3:] == [
        "name: search_best",
        f"runs_dir: {sweep.runs_dir}",
    ]
    page = (sweep.folder / "report.html").read_text()
    assert page.count("<img") >= 2 and "loss 'g'" in page


def test_no_finished_trial_is_an_error_with_the_reasons(sweep_of, capsys):
    sweep = sweep_of("crash x", "crash y")
    assert Runner(sweep).run() == 1
    assert "reasons are in" in capsys.readouterr().out
    assert not (sweep.folder / "best.yaml").exists() and (sweep.folder / "report.html").exists()


def test_finished_sweep_runs_nothing_again_and_more_trials_continue_it(sweep_of):
    sweep = sweep_of("score 1", "score 2")
    assert Runner(sweep).run() == 0
    assert Runner(sweep).run() == 0
    assert [len(starts(sweep, number)) for number in range(2)] == [1, 1]
    more = sweep_of("score 1", trials=3)
    assert Runner(more).run() == 0
    assert [len(starts(sweep, number)) for number in range(3)] == [1, 1, 1]
    assert len({row["seed"] for row in table(more)}) == 3


def test_changed_sweep_is_refused_with_the_differences(sweep_of):
    Runner(sweep_of("score 1")).run()
    changed = sweep_of("score 1", space={"seed": {"int": [0, 9]}}, value="best")
    with pytest.raises(ConfigError) as error:
        Runner(changed)
    assert error.value.problems[1:] == [
        "space.seed.int: was [0, 99], is [0, 9]",
        "value: was 'last', is 'best'",
    ]


def test_a_grid_is_tried_once_each(sweep_of):
    space = {"seed": {"choice": [0, 1]}, "schedule.batch_size": {"int": [4, 8], "step": 4}}
    sweep = sweep_of("score 1", space=space, method="grid", trials=None, parallel=2)
    assert Runner(sweep).run() == 0
    tried = [(row["seed"], row["schedule.batch_size"]) for row in table(sweep)]
    assert tried == [("0", "4"), ("0", "8"), ("1", "4"), ("1", "8")]


def test_bad_trials_are_ended_with_everything_that_they_started(sweep_of):
    pruning = {"rule": "median", "after_images": 0, "startup_trials": 2}
    sweep = sweep_of("score 1 1", "score 1 1", "score 1 1", "slow 9", pruning=pruning)
    assert Runner(sweep).run() == 0
    last = table(sweep)[3]
    assert (last["state"], last["value"], last["reason"]) == ("pruned", "9.0", "its score was too bad to go on")
    worker = int((sweep.folder / "trials" / "trial_0003" / "worker").read_text())
    assert not is_alive(worker) and not is_alive(int(starts(sweep, 3)[0].split()[0]))


def test_scores_are_compared_under_the_cadence_that_they_crossed(sweep_of):
    sweep = sweep_of("score 1")
    study = Runner(sweep).study
    number, _, lock = study.next()
    study.report(number, [(0, 5.0), (48, 4.0), (80, 3.0), (96, 2.0)], 40)
    assert study.trials()[number].intermediate_values == {0: 5.0, 40: 4.0, 80: 3.0}
    lock.close()


def test_asked_to_stop_it_waits_for_checkpoints_and_the_same_command_continues(sweep_of, capsys):
    sweep = sweep_of("slow 3", "slow 4", "score 5", parallel=2)
    running = Runner(sweep)

    def stop():
        wait_for(lambda: all((sweep.folder / "trials" / trial_name(n) / "worker").exists() for n in range(2)))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    assert running.run() == 85
    assert [row["state"] for row in table(sweep)] == ["running", "running"]
    assert "the same command continues" in capsys.readouterr().err
    workers = [int((sweep.folder / "trials" / trial_name(n) / "worker").read_text()) for n in range(2)]
    wait_for(lambda: not any(map(is_alive, workers)))
    assert Runner(sweep).run() == 0
    assert [row["value"] for row in table(sweep)] == ["3.0", "4.0", "5.0"]
    assert [len(starts(sweep, number)) for number in range(3)] == [2, 2, 1]


def test_trial_that_ended_while_its_sweep_was_dead_is_not_run_again(sweep_of):
    sweep = sweep_of("score 1", "score 1", "score 7")
    study = Runner(sweep).study
    held = [study.next() for _ in range(2)]
    for state, (number, _, lock) in zip(("finished", "diverged"), held, strict=True):
        run = sweep.folder / "trials" / trial_name(number) / "run"
        run.mkdir()
        (run / "config.yaml").write_text("name: x\nruns_dir: y\n")
        (run / "metrics.jsonl").write_text('{"images_seen": 40, "score/frechet_random_conv": 0.5}\n')
        (run / "status.json").write_text(f'{{"state": "{state}", "reason": "DivergedError: training diverged: x"}}')
        lock.close()
    assert Runner(sweep).run() == 0
    assert [(row["state"], row["reason"]) for row in table(sweep)[:2]] == [("complete", ""), ("fail", "diverged: x")]
    assert [len(starts(sweep, number)) for number in range(3)] == [0, 0, 1]


def test_a_trial_that_somebody_holds_is_left_alone(sweep_of):
    sweep = sweep_of("score 1", "score 2")
    study = Runner(sweep).study
    number, assignment, lock = study.next()
    other = study.next()
    assert (number, other[0]) == (0, 1) and study.next() is None
    lock.close()  # as when its sweep is killed
    assert study.next()[:2] == (number, assignment)


def test_several_machines_make_exactly_the_planned_trials(sweep_of):
    sweep = sweep_of(*["score 1"] * 30)
    prepare(sweep)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def machine():
        study = Study(sweep)
        while (following := study.next()) is not None:
            number, assignment, lock = following
            study.tell(number, TrialState.COMPLETE, float(assignment["seed"]), reason="")
            lock.close()
            queue.put((number, assignment["seed"]))

    machines = [context.Process(target=machine) for _ in range(3)]
    for process in machines:
        process.start()
    made = sorted(queue.get(timeout=60) for _ in range(30))
    for process in machines:
        process.join(60)
        assert process.exitcode == 0
    assert [number for number, _ in made] == list(range(30)) and queue.empty()
    assert len({seed for _, seed in made}) > 20  # no two machines drew the same numbers


def test_a_database_serves_as_storage_and_stays_secret(sweep_of, tmp_path, monkeypatch):
    monkeypatch.setenv("MIRAGE_SWEEP_STORAGE", f"sqlite:///{tmp_path / 'study.db'}")
    sweep = sweep_of("score 1", "score 2")
    assert Runner(sweep).run() == 0
    assert not (sweep.folder / "journal.log").exists()
    assert all("sqlite" not in path.read_text() for path in sweep.folder.glob("*.*"))
    elsewhere = sweep_of("score 1", runs_dir=str(tmp_path / "elsewhere"))
    with pytest.raises(ConfigError, match="has its runs in another folder"):
        Runner(elsewhere)
    monkeypatch.setenv("MIRAGE_SWEEP_STORAGE", "nonsense://me:secret@host/db")
    with pytest.raises(ConfigError) as error:
        Runner(sweep)
    assert "cannot be opened" in str(error.value) and "secret" not in str(error.value)


def test_journal_that_a_kill_cut_off_goes_on(sweep_of):
    sweep = sweep_of("score 1", "score 2")
    assert Runner(sweep).run() == 0
    with (sweep.folder / "journal.log").open("a") as file:
        file.write('{"op_code": 4, "wor')
    assert Runner(sweep_of("score 1", trials=3)).run() == 0
    assert [row["state"] for row in table(sweep)] == ["complete"] * 3


SWEEP_THAT_DIES = """
import os, subprocess, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
import fcntl
lock = (folder / ".sweep-lock").open("ab")
fcntl.flock(lock, fcntl.LOCK_EX)
process = subprocess.Popen(
    [sys.executable, "-m", "experiments.jobs.keeper", str(lock.fileno())]
    + [sys.executable, sys.argv[2], folder, "slow 1"],
    stdin=subprocess.PIPE, pass_fds=[lock.fileno()], start_new_session=True)
(folder / "keeper").write_text(str(process.pid))
time.sleep(600)
"""


def start_a_sweep_that_dies(folder):
    sweep = subprocess.Popen([sys.executable, "-c", SWEEP_THAT_DIES, str(folder), str(FAKE)], cwd=ROOT)
    files = [folder / name for name in ("keeper", "starts", "worker")]
    wait_for(lambda: all(path.is_file() and path.read_text().split() for path in files))  # there, and written
    pids = [int(path.read_text().split()[0]) for path in files]
    assert all(map(is_alive, pids)) and try_lock(folder / ".sweep-lock") is None
    return sweep, pids


def test_nothing_of_a_trial_outlives_a_killed_sweep(tmp_path):
    sweep, pids = start_a_sweep_that_dies(tmp_path)
    sweep.kill()
    sweep.wait()
    wait_for(lambda: not any(map(is_alive, pids)), seconds=5)
    assert try_lock(tmp_path / ".sweep-lock") is not None


def test_a_trial_whose_keeper_and_sweep_were_killed_cannot_be_started_twice(tmp_path):
    sweep, (keeper, trial, worker) = start_a_sweep_that_dies(tmp_path)
    try:
        os.kill(keeper, signal.SIGKILL)
        sweep.kill()
        sweep.wait()
        wait_for(lambda: not is_alive(keeper))
        assert is_alive(trial) and try_lock(tmp_path / ".sweep-lock") is None
    finally:
        for pid in (trial, worker):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(trial))
    assert try_lock(tmp_path / ".sweep-lock") is not None


def test_trials_share_out_the_devices(sweep_of, monkeypatch, caplog):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert device_slots(sweep_of("score 1", parallel=2, devices_per_trial=2)) == ["4,5", "6,7"]
    assert device_slots(sweep_of("score 1", parallel=3, devices_per_trial=2)) == ["4,5", "6,7", "4,5"]
    assert "share the 4" in caplog.text
    with pytest.raises(ConfigError, match="devices_per_trial=5: this machine has 4 GPUs"):
        device_slots(sweep_of("score 1", devices_per_trial=5))
    sweep = sweep_of("score 1", "score 1", parallel=2)
    assert Runner(sweep).run() == 0
    assert {starts(sweep, number)[0].split()[1] for number in range(2)} == {"4", "5"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_slots(sweep_of("score 1", parallel=2)) == [None, None]


def test_reasons_are_sentences():
    assert reason(-15, "") == "killed by SIGTERM"
    assert reason(1, "") == "it said nothing (exit code 1)"
    assert reason(1, "a\rb\nRuntimeError: x\nwandb: bye\n") == "RuntimeError: x (exit code 1)"
    assert reason(-9, "MemoryError\n").startswith("out of memory")


def test_value_is_the_last_or_the_best():
    found = [(0, 5.0), (40, 1.0), (80, 3.0)]
    assert value_of(found, "last", "minimize") == 3.0
    assert value_of(found, "best", "minimize") == 1.0
    assert value_of(found, "best", "maximize") == 5.0
    assert value_of([], "best", "minimize") is None
    assert value_of([*found, (96, float("nan"))], "last", "minimize") is None


@pytest.mark.parametrize(
    "cell, safe",
    [
        ("=1+1", "'=1+1"),
        ("@x", "'@x"),
        ("\tx", " x"),
        ("-x", "'-x"),
        ("-1e-3", "-1e-3"),
        (-1.0, "-1.0"),
        ("a=b", "a=b"),
    ],
)
def test_no_cell_is_a_formula(cell, safe):
    assert csv_cell(cell) == safe
