"""Every shipped experiment runs; what is wrong with a configuration is said at once."""

import pytest
import torch
import yaml
from conftest import TINY_KIDNEY, TINY_PROGRESSIVE, TINY_YAML, tiny, tiny_config

from experiments import cli, run
from experiments.configuration import files, objects
from experiments.configuration.errors import ConfigError
from experiments.configuration.files import CONFIGS, shipped
from experiments.record.run_directory import changed_hyper_parameters
from experiments.running.training import train
from lightning_modules.run_record import RunRecord, Score
from lightning_modules.schedules import ConstantSchedule, ProgressiveSchedule

SMALL = [
    "callbacks.score.count=4",
    "callbacks.samples.count=4",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "tracking=disabled",
]


NARROW = ["module.generator_channels=4", "module.discriminator_channels=4", "schedule.batch_size=4"]
# Three stages of one and two batches each: 4 + 8 + 8 images.
GROWING = [
    "schedule.batch_sizes=4",
    "schedule.fade_images=4",
    "schedule.stable_images=4",
    "schedule.learning_rate_scales=1",
    "module.channels=null",
    "module.channel_max=4",
    "module.latent_dim=8",
]


# The learned network, which all share, takes longer than the rest of a run.
LEARNED = ("demo", "dcgan_ct_kidney_64")  # one that says how large it wants its images, one that does not
RANDOM = "callbacks.score.extractor={_target_: lightning_modules.metrics.features.RandomConvNet}"


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_experiment_runs_to_its_end_through_the_command_line(name, tmp_path, request, capsys):
    config = files.load(name)
    overrides = [*SMALL, f"runs_dir={tmp_path}"]
    if name not in LEARNED:
        assert config["callbacks"]["score"]["extractor"]["_target_"].endswith(".EfficientNetLite0")
        overrides.append(RANDOM)
    if config["module"]["_target_"].endswith("ProgressiveGAN"):
        height, width = config["schedule"]["resolution"]
        overrides += [*GROWING, f"schedule.resolution=[{16 * height // width},16]"]
    else:
        overrides += [*NARROW, "schedule.total_images=8"]
    roots = {"CTKidney": "kidney_root", "ChestXray14": "chest_root", "Mammography": "mammography_root"}
    data = config["data"]["_target_"].rsplit(".")[-1]
    overrides.append(f"data.root={request.getfixturevalue(roots[data])}" if data in roots else "data.count=20")
    if data == "CTKidney":
        overrides.append("data.block_size=2")  # of 10 slices a class
    assert run.main([name, *overrides]) == 0
    output = capsys.readouterr().out
    assert "samples" in output and "report.html" in output and "Frechet" in output
    (directory,) = (tmp_path / name).iterdir()
    end = 20 if "module.latent_dim=8" in overrides else 8
    assert (directory / "checkpoints" / f"images_{end:012d}.ckpt").exists()


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_experiment_says_what_it_is_and_how_to_run_it(name):
    first, second = (CONFIGS / f"{name}.yaml").read_text().splitlines()[:2]
    assert first.startswith("# ") and len(first) < 120
    assert second.startswith(f"# python -m experiments.run {name}")


def test_list_show_and_help(capsys):
    assert run.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == shipped()
    assert run.main(["demo", "--show", "schedule.batch_sizes=7"]) == 0
    shown = capsys.readouterr().out
    assert "batch_sizes: 7" in shown and shown.startswith("name: demo") and "channel_base" not in shown
    with pytest.raises(SystemExit) as stop:
        run.main(["--help"])
    assert stop.value.code == 0


def test_defaults_are_shown_for_what_no_file_sets(capsys):
    assert run.main(["demo", "--show-defaults", "schedule.batch_sizes=7"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["schedule"]["batch_sizes"] == 7
    assert shown["module"]["channel_base"] == 8192
    assert run.main(["demo", "--show-defaults", "schedule.batch_size=7"]) == cli.EXIT_BAD_CONFIG
    assert "schedule.batch_size=7" in capsys.readouterr().err


def test_all_errors_come_at_once_with_key_value_type_and_nearest_name(tmp_path, capsys):
    wrong = [
        "module.lerning_rate=1e-3",
        "module.latent_dim=abc",
        "schedule.total_image=5",
        "callbacks.checkpoint.keep=two",
        "data.kind=kidny_ct",
        "callbacks.emma={_target_: callbacks.ema.GeneratorEMMA}",
    ]
    assert run.main(tiny("dcgan", tmp_path, *wrong)) == 2
    message = capsys.readouterr().err
    for line in (
        "6 errors in",
        "module.lerning_rate=0.001: DCGAN has no argument 'lerning_rate'; did you mean 'learning_rate'",
        "module.latent_dim='abc': expected int, got str",
        "schedule.total_image=5: ConstantSchedule has no argument 'total_image'; did you mean 'total_images'",
        "callbacks.checkpoint.keep='two': expected int, got str",
        "data.kind='kidny_ct': expected one of 'mammogram', 'chest_xray', 'kidney_ct', got str",
        "callbacks.ema has no class 'GeneratorEMMA'; did you mean 'GeneratorEMA'",
    ):
        assert line in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "wrong, keys",
    [
        (["foo=1", "module.bar=2", "trainer.baz=3"], ["foo", "module.bar", "trainer.baz"]),
        (["data=null", "module.bar=2"], ["data", "module.bar"]),
        (
            ["schedule.batch_size=0", "module.latent_dim=0", "data.num_workers=-1", "callbacks.ema.half_life_images=0"],
            ["schedule.batch_size", "module.latent_dim", "data.num_workers", "callbacks.ema.half_life_images"],
        ),
        (["seed", "a b=3", "seed=[1"], ["'seed'", "'a b=3'", "'seed=[1'"]),
        (["trainer.num_nodes=2", "module.image_channels=3"], ["trainer.num_nodes", "module.image_channels"]),
    ],
)
def test_problems_of_several_kinds_come_at_once(wrong, keys, tmp_path, capsys):
    assert run.main(tiny("dcgan", tmp_path, *wrong)) == cli.EXIT_BAD_CONFIG
    header, *problems = capsys.readouterr().err.splitlines()
    assert header.startswith(f"{len(keys)} errors in")
    for key in keys:
        assert sum(problem.startswith((f"  {key}=", f"  {key}:")) for problem in problems) == 1, problems


@pytest.mark.parametrize("family", ["progressive", "wgan_gp", "kidney_gan"])
def test_a_refused_schedule_is_the_only_problem_that_it_causes(family, tmp_path, capsys):
    key = "batch_sizes" if family == "progressive" else "batch_size"
    assert run.main(tiny(family, tmp_path, f"schedule.{key}=0")) == cli.EXIT_BAD_CONFIG
    (problem,) = capsys.readouterr().err.splitlines()[1:]
    assert problem.startswith(f"  schedule.{key}=")


def test_extends_takes_several_files_and_the_last_wins(tmp_path):
    (tmp_path / "a.yaml").write_text("x: {p: 1, q: 1}\ny: 1\n")
    (tmp_path / "b.yaml").write_text("x: {q: 2}\n")
    (tmp_path / "c.yaml").write_text("extends: [a, b.yaml]\nz: ${x.q}\n")
    assert files.load(str(tmp_path / "c.yaml")) == {"name": "c", "x": {"p": 1, "q": 2}, "y": 1, "z": 2}


def test_node_of_another_class_replaces_the_old_one(tmp_path):
    (tmp_path / "a.yaml").write_text("m: {_target_: x.A, p: 1}\nn: {q: 1}\n")
    (tmp_path / "b.yaml").write_text("extends: a\nm: {_target_: x.B, r: 2}\nn: {_target_: x.C}\n")
    config = files.load(str(tmp_path / "b.yaml"))
    assert config["m"] == {"_target_": "x.B", "r": 2}
    assert config["n"] == {"_target_": "x.C", "q": 1}


def test_environment_gives_data_roots(tmp_path, monkeypatch):
    monkeypatch.setenv("MIRAGE_CT_KIDNEY", str(tmp_path))
    assert files.load("dcgan_ct_kidney_64")["data"]["root"] == str(tmp_path)


def test_missing_root_is_one_sentence_with_argument_layout_and_source(tmp_path, capsys):
    assert run.main(["dcgan_ct_kidney_64", f"runs_dir={tmp_path}", "data.root=/no/such/folder"]) == 2
    message = capsys.readouterr().err
    assert "data.root=/no/such/folder" in message and "Cyst, Normal, Stone and Tumor" in message
    assert "kaggle.com" in message and len(message.splitlines()) == 2


def test_batch_that_devices_cannot_share_is_one_sentence(tmp_path, capsys):
    assert run.main(tiny("dcgan", tmp_path, "trainer.devices=3")) == 2
    assert "schedule: a batch of 8 cannot be shared equally by 3 processes" in (message := capsys.readouterr().err)
    assert "use 6 or 9" in message


def test_sizes_and_channels_must_agree(tmp_path):
    with pytest.raises(ConfigError) as error:
        train(tiny_config("dcgan", tmp_path, "module.image_size=[64,64]", "module.image_channels=3"))
    assert error.value.problems == [
        "module.image_size=[64, 64]: schedule.resolution is [32, 32]",
        "module.image_channels=3: the images of Phantoms have 1",
    ]


def test_networks_schedule_and_callbacks_must_change_together(tmp_path, capsys):
    (tmp_path / "growing_dcgan.yaml").write_text(
        f"extends: [{TINY_YAML}, {TINY_PROGRESSIVE}]\ncallbacks: {{fade_in: null}}\n"
        "module: {_target_: lightning_modules.dcgan.DCGAN, image_size: '${schedule.resolution}'}\n"
    )
    (tmp_path / "constant.yaml").write_text(
        f"extends: [{TINY_PROGRESSIVE}]\nschedule: {{_target_: lightning_modules.schedules.ConstantSchedule, "
        "resolution: [20, 16], batch_size: 8, total_images: 8}\n"
    )
    for arguments, message in (
        (tiny("progressive", tmp_path, "callbacks.fade_in=null"), "ProgressiveGAN grows and needs callbacks.fade_in"),
        (tiny("dcgan", tmp_path, "callbacks.fade_in._target_=callbacks.fade_in.FadeIn"), "DCGAN does not grow; remove"),
        (
            [str(tmp_path / "growing_dcgan.yaml")],
            "DCGAN does not grow; use lightning_modules.schedules.ConstantSchedule",
        ),
        ([str(tmp_path / "constant.yaml")], "grows; use lightning_modules.schedules.ProgressiveSchedule"),
        (tiny("dcgan", tmp_path, "callbacks.ema=null"), "0 are a callbacks.ema.GeneratorEMA, exactly one must be"),
        (
            tiny("dcgan", tmp_path, "callbacks.second={_target_: callbacks.ema.GeneratorEMA, half_life_images: 9}"),
            "2 are a callbacks.ema.GeneratorEMA, exactly one must be",
        ),
    ):
        assert run.main(arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "lightning_modules.networks.latents.hashlib.blake2b",
        "callbacks.checkpoint.os.remove",
        "datamodules.base.np.load",
        "experiments.run.main",
        "torch.load",
    ],
)
def test_a_configuration_cannot_name_arbitrary_code(tmp_path, target):
    with pytest.raises(ConfigError):
        train(tiny_config("dcgan", tmp_path, f"callbacks.extra={{_target_: {target}}}"))


def test_lightnings_own_callbacks_can_be_named(tmp_path):
    extra = "callbacks.extra={_target_: lightning.pytorch.callbacks.Timer, duration: '00:01:00:00'}"
    directory = train(tiny_config("dcgan", tmp_path, "schedule.total_images=8", extra))
    assert (directory / "report.html").exists()


def test_whole_floats_are_counts(tmp_path):
    config = tiny_config("dcgan", tmp_path, "schedule.total_images=1.6e1")
    assert train(config).exists()


def test_none_from_a_sweep_agent_is_null():
    assert files.load("demo", ["callbacks.score=None"])["callbacks"]["score"] is None


def test_changed_hyper_parameters_are_refused_with_a_list(tmp_path, capsys):
    first = train(tiny_config("dcgan", tmp_path))
    changes = ["module.learning_rate=1e-5", "schedule.total_images=120", "callbacks.progress.every_images=10"]
    assert run.main(tiny("dcgan", tmp_path, *changes, f"resume={first}")) == 2
    message = capsys.readouterr().err
    assert "module.learning_rate: was 0.0002, is 1e-05" in message
    assert "schedule.total_images: was 96, is 120" in message
    assert "progress" not in message and "allow_changes=true" in message
    assert run.main(tiny("dcgan", tmp_path, *changes, f"resume={first}", "allow_changes=true")) == 0
    assert (first / "checkpoints" / "images_000000000120.ckpt").exists()
    assert list(first.glob("config.before-*.yaml"))


def test_files_may_have_moved_since_a_run_began(tmp_path):
    """What lies in them is in the data's fingerprint."""
    data = {"root": "a", "csv": "a/x.csv", "exclude_csv": "a/y.csv", "cache_dir": "c", "val_fraction": 0.1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    moved = {**data, "root": "b", "csv": "b/x.csv", "exclude_csv": None, "val_fraction": 0.2}
    assert changed_hyper_parameters(tmp_path, {"data": moved}) == ["data.val_fraction: was 0.1, is 0.2"]


def test_changed_learning_rate_takes_effect_on_resume(tmp_path):
    import torch
    from conftest import newest_checkpoint

    first = train(tiny_config("dcgan", tmp_path))
    changes = ["module.learning_rate=1e-5", "schedule.total_images=120", f"resume={first}", "allow_changes=true"]
    train(tiny_config("dcgan", tmp_path, *changes))
    groups = torch.load(newest_checkpoint(first), weights_only=True)["optimizer_states"][0]["param_groups"]
    assert groups[0]["lr"] == 1e-5


def test_changed_data_is_refused(tmp_path, kidney_root, capsys):
    import shutil

    root = tmp_path / "data"
    shutil.copytree(kidney_root, root)
    arguments = [str(TINY_KIDNEY), f"runs_dir={tmp_path / 'runs'}", f"data.root={root}"]
    assert run.main(arguments) == 0
    (first,) = (tmp_path / "runs" / "tiny_kidney").iterdir()
    next(root.glob("*/*/Cyst/*(1).jpg")).unlink()
    assert run.main([*arguments, f"resume={first}/checkpoints/images_000000000024.ckpt"]) == 2
    assert "the data is not what the checkpoint was trained on" in capsys.readouterr().err


def test_resume_auto_starts_anew_when_nothing_is_unfinished(tmp_path):
    first = train(tiny_config("dcgan", tmp_path, "resume=auto"))
    second = train(tiny_config("dcgan", tmp_path, "resume=auto"))
    assert first != second


def test_resume_auto_takes_the_newest_unfinished_run_even_without_checkpoint(tmp_path):
    first = train(tiny_config("dcgan", tmp_path, "schedule.total_images=8"))
    (first / "status.json").write_text('{"state": "running"}')
    for path in (first / "checkpoints").iterdir():
        path.unlink()
    assert train(tiny_config("dcgan", tmp_path, "schedule.total_images=8", "resume=auto")) == first


def test_finished_run_is_not_trained_any_further(tmp_path):
    first = train(tiny_config("dcgan", tmp_path))
    names = sorted(path.name for path in (first / "checkpoints").iterdir())
    (first / "status.json").write_text('{"state": "running"}')  # killed between last checkpoint and report
    (first / "report.html").unlink()
    assert train(tiny_config("dcgan", tmp_path, "resume=auto")) == first
    assert sorted(path.name for path in (first / "checkpoints").iterdir()) == names
    assert (first / "report.html").exists()
    assert '"finished"' in (first / "status.json").read_text()


def test_checkpoint_that_is_refused_moves_no_other(tmp_path):
    first = train(tiny_config("dcgan", tmp_path))
    older = first / "checkpoints" / "images_000000000024.ckpt"
    torch.save({**torch.load(older, weights_only=True), "losses": []}, older)
    with pytest.raises(ConfigError, match=r"images_000000000024\.ckpt: is no checkpoint of a Mirage run"):
        train(tiny_config("dcgan", tmp_path, f"resume={older}", "schedule.total_images=48", "allow_changes=true"))
    assert (first / "checkpoints" / "images_000000000096.ckpt").exists()


def test_resuming_from_an_older_checkpoint_keeps_the_new_ones(tmp_path):
    first = train(tiny_config("dcgan", tmp_path))
    overrides = ["callbacks.checkpoint.keep=2", f"resume={first}/checkpoints/images_000000000024.ckpt"]
    train(tiny_config("dcgan", tmp_path, *overrides, "schedule.total_images=48", "allow_changes=true"))
    names = sorted(path.name for path in (first / "checkpoints").glob("images_*.ckpt"))
    assert names == ["images_000000000040.ckpt", "images_000000000048.ckpt"]
    assert (first / "checkpoints" / "overtaken" / "images_000000000096.ckpt").exists()
    assert sorted(path.name for path in (first / "samples").glob("*.png"))[-2:] == [
        "images_000000000048.png",
        "real.png",
    ]


def test_a_run_directory_is_for_one_process(tmp_path, capsys):
    from experiments.record import run_directory

    first = train(tiny_config("dcgan", tmp_path))
    run_directory.write_status(first, "running", pid=1)
    with run_directory.lock(first):
        assert run.main(tiny("dcgan", tmp_path, "resume=auto")) == 2
    assert "process 1 is training in this run directory" in capsys.readouterr().err


def test_the_lock_of_a_run_is_never_let_go_before_its_end(tmp_path, monkeypatch):
    from experiments.record import run_directory
    from experiments.running import training

    agree, held = training.processes.agree_on_start, []

    def agreed(*arguments):
        start = agree(*arguments)
        with pytest.raises(ConfigError, match="is training in this run directory"):
            run_directory.lock(start.directory).close()
        held.append(start.directory)
        return start

    monkeypatch.setattr(training.processes, "agree_on_start", agreed)
    directory = train(tiny_config("dcgan", tmp_path, "schedule.total_images=8"))
    assert held == [directory]
    run_directory.lock(directory).close()


def test_recorded_configuration_holds_every_default(tmp_path):
    from omegaconf import OmegaConf

    directory = train(tiny_config("dcgan", tmp_path, "schedule.total_images=8"))
    config = OmegaConf.load(directory / "config.yaml")
    assert config.module.learning_rate == 2e-4 and config.module.beta1 == 0.5
    assert config.data.val_fraction == 0.1 and config.callbacks.score.split == "train"
    assert "resume" not in config


def test_tuples_are_recorded_as_lists():
    node = objects.completed(
        {"_target_": "lightning_modules.metrics.torchvision_network.TorchvisionNetwork", "weights": "w"}
    )
    assert node["scale"] == [0.0, 1.0]
    assert objects.completed({"_target_": "callbacks.checkpoint.PeriodicCheckpoint"})["keep_at"] == []


def test_an_empty_list_is_no_change_from_none_recorded(tmp_path):
    (tmp_path / "config.yaml").write_text("data: {layout: cbis}\n")
    assert changed_hyper_parameters(tmp_path, {"data": {"layout": "cbis", "exclude": []}}) == []
    assert changed_hyper_parameters(tmp_path, {"data": {"layout": "cbis", "exclude": ["clips"]}}) == [
        "data.exclude: was None, is ['clips']"
    ]


def test_several_machines_need_a_launcher(tmp_path, capsys):
    assert run.main(tiny("dcgan", tmp_path, "trainer.num_nodes=2")) == 2
    assert "trainer.num_nodes=2: several machines need torchrun or SLURM" in capsys.readouterr().err


def test_score_against_an_empty_split_is_one_sentence(tmp_path, capsys):
    assert run.main(tiny("dcgan", tmp_path, "callbacks.score.split=val", "data.val_fraction=0")) == 2
    assert "callbacks.score.split='val': the split has 0 images" in capsys.readouterr().err


def test_images_too_small_for_the_extractor_are_one_sentence(tmp_path, capsys):
    small = ["schedule.resolution=[8,8]", "callbacks.score.every_images=40"]
    assert run.main(tiny("dcgan", tmp_path, *small)) == 2
    message = capsys.readouterr().err
    assert "callbacks.score.extractor=RandomConvNet: cannot measure 1 channels of 8x8 pixels" in message


class Scored:
    """What the choice of the best checkpoint asks of a module that has just been scored."""

    def __init__(self, clock, score, schedule=None):
        self.images_seen, self.record = clock, RunRecord(score=score, scored_at=clock)
        self.schedule = schedule or ConstantSchedule((8, 8), 1, 100)
        self.grows = schedule is not None


def test_best_checkpoint_starts_anew_with_another_score():
    from callbacks.checkpoint import PeriodicCheckpoint

    module = Scored(8, Score("score/fid", "1a", 50.0))
    callback = PeriodicCheckpoint()
    callback.load_state_dict({"best": {"score/frechet_random_conv 2b": 0.3}, "scored_at": 0})
    assert callback._is_best(module)
    assert callback.best == {"score/frechet_random_conv 2b": 0.3, "score/fid 1a": 50.0}
    older = PeriodicCheckpoint()
    older.load_state_dict({"best": ["score/fid", 0.3], "scored_at": 0})
    assert older._is_best(module)


def test_two_scores_are_each_compared_with_their_own_kind():
    from callbacks.checkpoint import PeriodicCheckpoint

    kinds = [("a", 5.0), ("b", 50.0), ("a", 6.0), ("b", 51.0), ("b", 49.0), ("a", 4.0), ("a", float("nan"))]
    callback = PeriodicCheckpoint()
    best = [callback._is_best(Scored(clock, Score("score/fid", *kind))) for clock, kind in enumerate(kinds)]
    assert best == [True, True, False, False, True, True, False]


def test_of_a_score_where_higher_is_better_the_highest_is_the_best():
    from callbacks.checkpoint import PeriodicCheckpoint

    callback = PeriodicCheckpoint()
    scores = [0.5, 0.4, float("nan"), 0.7, 0.6]
    best = [
        callback._is_best(Scored(clock, Score("score/auc", "a", value, "higher"))) for clock, value in enumerate(scores)
    ]
    assert best == [True, False, False, True, False]


def test_early_stage_of_a_growing_network_is_never_the_best_checkpoint():
    """Blurred images score well at the final size."""
    from callbacks.checkpoint import PeriodicCheckpoint

    schedule = ProgressiveSchedule((16, 16), batch_sizes=8, fade_images=16, stable_images=32)  # 4, 8 and 16 pixels
    callback = PeriodicCheckpoint()
    clocks, values = [16, 48, 80, 88, 96, 128], [1.0, 0.5, 2.0, 0.1, 9.0, 8.0]  # 88 fades in at a half
    found = [
        callback._is_best(Scored(clock, Score("score/fid", "a", value), schedule))
        for clock, value in zip(clocks, values, strict=True)
    ]
    assert found == [False, False, False, False, True, True]
    older = PeriodicCheckpoint()  # which has taken an early stage for the best
    older.load_state_dict({"best": {"score/fid a": 0.1}, "scored_at": 0})
    assert older._is_best(Scored(128, Score("score/fid", "a", 8.0), schedule))


@pytest.mark.parametrize(
    "change", ["callbacks.score.count=6", "callbacks.score.max_real=20", "callbacks.score.split=val"]
)
def test_score_with_another_fingerprint_starts_anew(tmp_path, monkeypatch, change):
    from callbacks import fid
    from experiments.record.run_directory import clock_of

    values = iter([9.0, 5.0, 3.0, 7.0, 8.0])  # at 0, 40, 80, 96 and, of another kind, at 96
    monkeypatch.setattr(fid, "frechet_distance", lambda *_: next(values))
    directory = train(tiny_config("dcgan", tmp_path))
    first = directory / "checkpoints" / "images_000000000080.ckpt"
    train(tiny_config("dcgan", tmp_path, f"resume={first}", change))
    assert clock_of(directory / "checkpoints" / "best.ckpt") == 96


def test_later_processes_are_no_part_of_a_run_that_has_ended(tmp_path):
    import os

    train(tiny_config("dcgan", tmp_path, "schedule.total_images=8"))
    assert "MIRAGE_START" not in os.environ
