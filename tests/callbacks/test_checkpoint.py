"""Checkpoints: atomic, verified, pruned, and never of a broken state."""

import errno
import json

import pytest
import torch
from conftest import cut_in_half, flip_a_bit, newest_checkpoint, tiny, tiny_config

from callbacks import fid
from callbacks.checkpoint import AtomicCheckpointIO, PeriodicCheckpoint, is_intact
from callbacks.divergence import DivergedError
from experiments import cli, run
from experiments.record.run_directory import clock_of, newest_usable_checkpoint, read_status
from experiments.running import training
from experiments.running.training import train


def test_write_is_whole_and_leaves_no_temporary(tmp_path):
    io = AtomicCheckpointIO()
    io.save_checkpoint({"x": torch.ones(1000)}, tmp_path / "deep" / "a.ckpt")
    assert io.error is None
    assert is_intact(tmp_path / "deep" / "a.ckpt")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.ckpt"]


def test_failed_write_keeps_the_previous_file(tmp_path, monkeypatch):
    io = AtomicCheckpointIO()
    io.save_checkpoint({"x": 1}, tmp_path / "a.ckpt")
    before = (tmp_path / "a.ckpt").read_bytes()

    def full_disk(checkpoint, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    io.save_checkpoint({"x": 2}, tmp_path / "a.ckpt")
    assert io.error is not None and io.error.errno == errno.ENOSPC
    assert (tmp_path / "a.ckpt").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_full_disk_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    save = torch.save
    calls = []

    def sometimes_full(checkpoint, file, *arguments, **keywords):
        calls.append(file)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(checkpoint, file, *arguments, **keywords)

    config = tiny_config("dcgan", tmp_path, "callbacks.score=null", "callbacks.checkpoint.keep_best=false")
    monkeypatch.setattr(torch, "save", sometimes_full)
    directory = train(config)
    assert "No space left on device" in caplog.text and "training goes on" in caplog.text
    assert len(list((directory / "checkpoints").iterdir())) == 96 // 8 - 1


@pytest.mark.parametrize("damage", [flip_a_bit, cut_in_half, lambda path: path.write_bytes(b"")])
def test_damage_is_seen(tmp_path, damage):
    AtomicCheckpointIO().save_checkpoint({"x": torch.randn(10_000)}, tmp_path / "a.ckpt")
    damage(tmp_path / "a.ckpt")
    assert not is_intact(tmp_path / "a.ckpt")


def test_newest_two_are_kept_and_the_best(tmp_path):
    directory = train(tiny_config("dcgan", tmp_path, "callbacks.checkpoint.keep=2"))
    names = sorted(path.name for path in (directory / "checkpoints").iterdir())
    assert names == ["best.ckpt", "images_000000000088.ckpt", "images_000000000096.ckpt"]
    scores = [json.loads(line) for line in (directory / "scores.jsonl").read_text().splitlines()][1:]
    best = min(scores, key=lambda row: row["value"])
    assert torch.load(directory / "checkpoints" / "best.ckpt", weights_only=True)["images_seen"] == best["images_seen"]


def scored(monkeypatch, values):
    """Let the score be what a table says of its clock."""
    monkeypatch.setattr(fid, "frechet_distance", lambda *_: next(values))


def test_best_checkpoint_of_an_overtaken_future_is_set_aside_and_a_later_score_is_the_best_again(tmp_path, monkeypatch):
    scored(monkeypatch, iter([9.0, 5.0, 1.0, 7.0, 8.0, 6.0]))  # at 0, 40, 80, 96 and again at 80, 96
    directory = train(tiny_config("dcgan", tmp_path))
    best = directory / "checkpoints" / "best.ckpt"
    assert clock_of(best) == 80
    checkpoint = directory / "checkpoints" / "images_000000000048.ckpt"
    changes = ["module.learning_rate=1e-4", "allow_changes=true"]
    train(tiny_config("dcgan", tmp_path, f"resume={checkpoint}", *changes))
    assert clock_of(best.parent / "overtaken" / "best.ckpt") == 80
    assert clock_of(best) == 96  # 6.0 is the lowest whose weights are there


def test_best_checkpoint_before_the_one_that_a_run_goes_on_from_stays_the_best(tmp_path, monkeypatch):
    scored(monkeypatch, iter([9.0, 5.0, 7.0, 8.0, 7.0, 6.0]))
    directory = train(tiny_config("dcgan", tmp_path))
    checkpoint = directory / "checkpoints" / "images_000000000048.ckpt"
    train(tiny_config("dcgan", tmp_path, f"resume={checkpoint}"))
    assert clock_of(directory / "checkpoints" / "best.ckpt") == 40


def test_best_checkpoint_that_cannot_be_read_is_set_aside_with_a_warning(tmp_path, caplog):
    directory = train(tiny_config("dcgan", tmp_path))
    best = directory / "checkpoints" / "best.ckpt"
    cut_in_half(best)
    train(tiny_config("dcgan", tmp_path, f"resume={directory}/checkpoints/images_000000000088.ckpt"))
    assert "best.ckpt: is no checkpoint of a Mirage run" in caplog.text
    assert clock_of(best) == 96


def test_checkpoint_after_a_time(tmp_path):
    overrides = ["callbacks.checkpoint.every_images=1_000_000", "callbacks.checkpoint.every_minutes=1e-9"]
    overrides += ["callbacks.checkpoint.keep_best=false", "schedule.total_images=200"]
    directory = train(tiny_config("dcgan", tmp_path, *overrides))
    # Batch 0 and batch 20 look at the time, and the end is always saved.
    clocks = [int(path.stem.removeprefix("images_")) for path in sorted((directory / "checkpoints").iterdir())]
    assert clocks == [8, 168, 200]


def test_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, caplog):
    whole = train(tiny_config("dcgan", tmp_path))
    (whole / "status.json").write_text('{"state": "running"}')
    flip_a_bit(newest_checkpoint(whole))
    usable = newest_usable_checkpoint(whole)
    assert usable.name == "images_000000000088.ckpt"
    assert "images_000000000096.ckpt is damaged" in caplog.text
    assert train(tiny_config("dcgan", tmp_path, "resume=auto")) == whole
    assert is_intact(newest_checkpoint(whole))


def test_run_whose_checkpoints_are_all_damaged_is_not_begun_anew_in_its_place(tmp_path, capsys):
    whole = train(tiny_config("dcgan", tmp_path, "callbacks.checkpoint.keep=2", "callbacks.checkpoint.keep_at=[24]"))
    (whole / "status.json").write_text('{"state": "running"}')
    for name in ("images_000000000088", "images_000000000096", "best"):
        cut_in_half(whole / "checkpoints" / f"{name}.ckpt")
    kept = whole / "checkpoints" / "kept_000000000024.ckpt"
    for resume in ("auto", whole):
        assert run.main(tiny("dcgan", tmp_path, f"resume={resume}")) == cli.EXIT_BAD_CONFIG
        said = capsys.readouterr().err
        assert "all checkpoints are damaged (images_000000000088.ckpt, images_000000000096.ckpt)" in said
        assert f"go on from an older one with resume={kept}\n" in said  # not with best.ckpt, which is damaged, too
    assert train(tiny_config("dcgan", tmp_path, f"resume={kept}")) == whole
    assert is_intact(newest_checkpoint(whole))


def test_run_without_any_usable_checkpoint_is_to_be_started_anew(tmp_path, capsys):
    whole = train(tiny_config("dcgan", tmp_path, "schedule.total_images=8"))
    for path in (whole / "checkpoints").glob("*.ckpt"):
        cut_in_half(path)
    assert run.main(tiny("dcgan", tmp_path, "schedule.total_images=8", f"resume={whole}")) == cli.EXIT_BAD_CONFIG
    assert "start anew without resume" in capsys.readouterr().err


def test_new_checkpoint_is_kept_though_one_with_a_later_clock_lies_there(tmp_path, with_callback):
    class Leave(training.L.Callback):
        def on_train_start(self, trainer, pl_module):
            (tmp_path / "runs" / "dcgan" / "only" / "checkpoints").mkdir(exist_ok=True)
            (tmp_path / "runs" / "dcgan" / "only" / "checkpoints" / "images_000000099999.ckpt").write_bytes(b"x")

    with_callback(Leave())
    directory = train(tiny_config("dcgan", tmp_path, "run_id=only", "callbacks.checkpoint.keep=1"))
    names = sorted(path.name for path in (directory / "checkpoints").glob("images_*"))
    assert names == ["images_000000000096.ckpt", "images_000000099999.ckpt"]


class Poison(training.L.Callback):
    """Makes a weight or a loss NaN at a clock."""

    def __init__(self, clock, what):
        self.clock, self.what = clock, what

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if pl_module.images_seen == self.clock:
            if self.what == "loss":
                batch["image"].fill_(float("nan"))
            else:
                with torch.no_grad():
                    pl_module.generator.upsample[-2].bias.fill_(float("inf"))


@pytest.fixture
def poisoned(monkeypatch):
    def at(clock, what):
        build = training.build

        def with_poison(experiment):
            parts = build(experiment)
            parts.callbacks.insert(0, Poison(clock, what))
            return parts

        monkeypatch.setattr(training, "build", with_poison)

    return at


@pytest.mark.parametrize("what", ["loss", "weight"])
def test_divergence_ends_the_run_and_saves_nothing_broken(tmp_path, poisoned, what, capsys):
    poisoned(48, what)
    assert run.main(tiny("dcgan", tmp_path, "callbacks.divergence.every_batches=1")) == cli.EXIT_DIVERGED
    (directory,) = (tmp_path / "runs" / "dcgan").iterdir()
    message = capsys.readouterr().err
    if what == "loss":
        assert "loss 'discriminator/adversarial' was NaN or infinite at images_seen=48" in message
    else:  # behind a tanh an infinite weight leaves the losses finite
        assert "a weight is NaN or infinite at images_seen=56" in message
    assert "images_000000000048.ckpt" in message
    assert newest_checkpoint(directory).name == "images_000000000048.ckpt"
    state = torch.load(newest_checkpoint(directory), weights_only=True)["state_dict"]
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert read_status(directory)["state"] == "diverged"
    assert "Traceback" not in message


def test_divergence_between_two_looks_is_found_before_the_checkpoint(tmp_path, poisoned):
    poisoned(48, "loss")
    with pytest.raises(DivergedError, match="images_seen=48"):
        train(tiny_config("dcgan", tmp_path, "callbacks.divergence.every_batches=1000"))


def test_diverged_run_is_not_resumed_by_itself(tmp_path, poisoned, capsys, monkeypatch):
    poisoned(48, "loss")
    run.main(tiny("dcgan", tmp_path))
    monkeypatch.undo()
    assert run.main(tiny("dcgan", tmp_path, "resume=auto")) == cli.EXIT_BAD_CONFIG
    assert "diverged and would do so again" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [{"every_images": 0}, {"every_minutes": -1}, {"keep": 0}])
def test_impossible_cadences_are_refused(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name}="):
        PeriodicCheckpoint(**arguments)


def test_folder_that_cannot_be_written_is_reported(tmp_path):
    io = AtomicCheckpointIO()
    (tmp_path / "file").write_text("")
    io.save_checkpoint({"x": 1}, tmp_path / "file" / "a.ckpt")
    assert isinstance(io.error, OSError)


def test_checkpoints_of_given_clocks_are_kept(tmp_path):
    extra = ["callbacks.checkpoint.keep=1", "callbacks.checkpoint.keep_at=[8, 50]"]
    directory = train(tiny_config("dcgan", tmp_path, *extra)) / "checkpoints"
    assert sorted(path.name for path in directory.glob("kept_*")) == [
        "kept_000000000008.ckpt",
        "kept_000000000056.ckpt",
    ]
    content = AtomicCheckpointIO().load_checkpoint(directory / "kept_000000000056.ckpt")
    assert content["images_seen"] == 56
    assert [path.name for path in directory.glob("images_*")] == ["images_000000000096.ckpt"]


def test_a_clock_that_nothing_reaches_is_refused():
    with pytest.raises(ValueError, match="keep_at=0: must be positive"):
        PeriodicCheckpoint(keep_at=(0,))
