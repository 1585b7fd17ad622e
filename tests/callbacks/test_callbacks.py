"""EMA, score, grids, log and progress, as they work in a run."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import assert_same_state, figures_drawn, newest_checkpoint, tiny_config
from PIL import Image

from callbacks.clock import crossed
from callbacks.ema import GeneratorEMA
from callbacks.fid import FrechetScore
from callbacks.generated import share_of
from callbacks.loss_log import LossLog
from callbacks.real_images import even_rows
from callbacks.sample_grid import SampleGrid, write_grid
from datamodules.batches.augmentation import Augmentation
from datamodules.batches.samplers import BatchRequest
from datamodules.phantoms import Phantoms
from experiments.record.report import scores_csv
from experiments.record.tracking import read_rows
from experiments.running.training import train
from lightning_modules.metrics.features import RandomConvNet
from lightning_modules.metrics.frechet import FeatureSums, frechet_distance
from lightning_modules.run_record import RunRecord
from lightning_modules.schedules import ConstantSchedule
from lightning_modules.step import LossRecord


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with figures_drawn():
        return train(tiny_config("dcgan", tmp_path_factory.mktemp("run")))


class Clock:
    def __init__(self, images_seen, batch_size=8, total=1000):
        self.images_seen, self.schedule = images_seen, ConstantSchedule((4, 4), batch_size, total)


def test_cadence_is_a_pure_function_of_the_clock():
    assert [clock for clock in range(8, 100, 8) if crossed(20, Clock(clock))] == [24, 40, 64, 80]
    assert crossed(10**9, Clock(1000))  # the end counts


def test_ema_equals_the_recursion_by_hand(tmp_path):
    directory = train(tiny_config("wgan_gp", tmp_path, "module.critic_steps=1", "callbacks.ema.ramp_up=null"))
    average = None
    for path in sorted((directory / "checkpoints").glob("images_*.ckpt")):
        state = torch.load(path, weights_only=True)["state_dict"]
        live = {key[10:]: value for key, value in state.items() if key.startswith("generator.")}
        if average is not None:
            decay = 0.5 ** (8 / 20)
            average = {key: torch.lerp(average[key], live[key], 1 - decay) for key in average}
            for key, value in average.items():
                torch.testing.assert_close(state[f"generator_ema.{key}"], value, rtol=1e-4, atol=1e-6)
        average = {key[14:]: value for key, value in state.items() if key.startswith("generator_ema.")}
        average = {key: value for key, value in average.items() if "running" not in key and "num_batches" not in key}
        assert torch.equal(state["generator_ema.project.2.running_mean"], state["generator.project.2.running_mean"])


def test_ema_equals_the_live_generator_until_its_start(tmp_path):
    directory = train(tiny_config("dcgan", tmp_path, "callbacks.ema.start_images=48"))
    for clock, same in ((48, True), (56, False)):
        state = torch.load(directory / "checkpoints" / f"images_{clock:012d}.ckpt", weights_only=True)["state_dict"]
        key = "project.0.weight"
        assert torch.equal(state[f"generator_ema.{key}"], state[f"generator.{key}"]) is same


def test_average_without_decay_is_the_live_generator(tmp_path):
    none = ["callbacks.ema.half_life_images=null", "callbacks.ema.ramp_up=null", "callbacks.ema.decay_per_step=0"]
    state = torch.load(newest_checkpoint(train(tiny_config("dcgan", tmp_path, *none))), weights_only=True)["state_dict"]
    live = {key: value for key, value in state.items() if key.startswith("generator.")}
    assert live and all(torch.equal(state[f"generator_ema{key[9:]}"], value) for key, value in live.items())


def test_average_moves_before_it_is_scored_whatever_the_order_in_the_file(finished, tmp_path):
    config = tiny_config("dcgan", tmp_path)
    config["callbacks"] = {"score": config["callbacks"]["score"], **config["callbacks"]}
    assert next(iter(config["callbacks"])) == "score"
    assert read_rows(train(config) / "scores.jsonl") == read_rows(finished / "scores.jsonl")


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"half_life_images": 10, "decay_per_step": 0.9},
        {"half_life_images": -1},
        {"decay_per_step": 1.0},
        {"decay_per_step": 0.9, "ramp_up": 0.05},
        {"half_life_images": 10, "start_images": -1},
    ],
)
def test_impossible_averages_are_refused(arguments):
    with pytest.raises(ValueError, match=r"half_life_images|decay_per_step|ramp_up|start_images"):
        GeneratorEMA(**arguments)


def test_score_falls_under_its_own_name_with_its_fingerprint(finished):
    rows = read_rows(finished / "scores.jsonl")
    assert [row["images_seen"] for row in rows] == [0, 40, 80, 96]
    expected = {"extractor": "random_conv", "split": "train", "generated": 8, "real": 40, "generator": "ema"}
    assert {key: rows[0][key] for key in expected} == expected
    assert {"weights_sha256", "preprocessing", "data_fingerprint", "resolution", "dtype", "seed"} <= rows[0].keys()
    logged = {key for row in read_rows(finished / "metrics.jsonl") for key in row if key.startswith("score/")}
    assert logged == {"score/frechet_random_conv"}


def test_score_equals_the_distance_computed_by_hand(finished, tmp_path, monkeypatch):
    from experiments.configuration.experiment import experiment_of
    from experiments.running.parts import build

    config = tiny_config("dcgan", tmp_path)
    parts = build(experiment_of(config))
    state = torch.load(newest_checkpoint(finished), weights_only=True)
    parts.module.load_state_dict(state["state_dict"])
    parts.data.prepare_data()
    parts.data.setup()
    net = RandomConvNet()
    sums = {"real": FeatureSums(net.dimensions), "fake": FeatureSums(net.dimensions)}
    for images in parts.data.images("train", 7):
        sums["real"].add(net(images))
    sums["fake"].add(net(parts.module.sample(8, seed=1)))
    expected = frechet_distance(sums["real"].statistics(), sums["fake"].statistics())
    assert read_rows(finished / "scores.jsonl")[-1]["value"] == pytest.approx(expected, rel=1e-5)


def test_real_statistics_are_computed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MIRAGE_CACHE", str(tmp_path / "cache"))
    first = train(tiny_config("dcgan", tmp_path))
    assert len(list((tmp_path / "cache" / "statistics").iterdir())) == 1
    monkeypatch.setattr(FrechetScore, "_real_images", lambda *_: pytest.fail("measured again"))
    second = train(tiny_config("dcgan", tmp_path))
    assert read_rows(first / "scores.jsonl") == read_rows(second / "scores.jsonl")


def test_another_split_or_number_has_other_statistics(tmp_path, monkeypatch):
    monkeypatch.setenv("MIRAGE_CACHE", str(tmp_path / "cache"))
    short = ["schedule.total_images=8", "data.val_fraction=0.3"]
    for override in ("callbacks.score.split=train", "callbacks.score.split=val", "callbacks.score.max_real=5"):
        directory = train(tiny_config("dcgan", tmp_path, *short, override))
    assert len(list((tmp_path / "cache" / "statistics").iterdir())) == 3
    assert read_rows(directory / "scores.jsonl")[0]["real"] == 5


def test_real_images_of_a_limited_score_are_from_all_over_the_split(tmp_path, monkeypatch):
    monkeypatch.setenv("MIRAGE_CACHE", str(tmp_path / "cache"))
    taken = []
    select = Phantoms.select
    monkeypatch.setattr(Phantoms, "select", lambda data, *which: (taken.append(which), select(data, *which))[1])
    statistics = FrechetScore._real_statistics
    monkeypatch.setattr(
        FrechetScore, "_real_statistics", lambda *of: (taken.clear(), statistics(*of), taken.append(0))[1]
    )
    few = ["callbacks.score.max_real=30", "callbacks.score.batch_size=7", "schedule.total_images=8"]
    train(tiny_config("dcgan", tmp_path, *few))
    calls = taken[: taken.index(0)]
    rows = np.concatenate([rows for split, rows in calls if split == "train"]).tolist()
    assert rows == [i * 40 // 30 for i in range(30)] and max(rows) == 38 and len(set(rows)) == 30


@pytest.mark.parametrize("size, count", [(1, 1), (7, 3), (7, 7), (7, 100), (100, 60), (5, 4), (0, 3)])
def test_even_rows_are_different_rows_at_even_distances(size, count):
    rows = even_rows(size, count)
    assert len(rows) == min(size, count) and len(set(rows.tolist())) == len(rows)
    assert all(0 <= row < size for row in rows)
    assert len(rows) < 2 or np.ptp(np.diff(rows)) <= 1


def test_a_score_says_what_device_it_was_taken_on(finished, monkeypatch):
    assert {row["device"] for row in read_rows(finished / "scores.jsonl")} == {"cpu"}

    class Trainer:
        class datamodule:
            fingerprint = staticmethod(lambda split: split)

    class Module:
        device = torch.device("cpu")

    class OnGPU:
        device = torch.device("cuda")

    score = FrechetScore()
    assert score._real_key(Trainer(), Module()) == score._real_key(Trainer(), Module())
    assert score._real_key(Trainer(), Module()) != score._real_key(Trainer(), OnGPU())


def test_grids_are_pictures_of_the_generated_and_of_the_real(finished):
    names = sorted(path.name for path in (finished / "samples").iterdir())
    assert names == ["images_000000000040.png", "images_000000000080.png", "images_000000000096.png", "real.png"]
    grid = Image.open(finished / "samples" / "images_000000000096.png")
    assert grid.mode == "L" and grid.size == (2 * 34 + 2, 2 * 34 + 2)
    assert np.asarray(grid).std() > 1


@pytest.mark.parametrize("channels, mode", [(1, "L"), (2, "L"), (3, "RGB"), (4, "L")])
def test_grid_maps_minus_one_to_black_and_one_to_white(tmp_path, channels, mode):
    images = torch.stack([torch.full((channels, 4, 6), -1.0), torch.full((channels, 4, 6), 1.0)])
    write_grid(images, tmp_path / "grid.png", columns=1)
    grid = Image.open(tmp_path / "grid.png")
    assert grid.mode == mode
    pixels = np.asarray(grid)
    assert pixels[3, 3].max() == 0 and pixels[9, 3].min() == 255


def test_losses_are_logged_on_the_clock_with_finite_values(finished):
    rows = [row for row in read_rows(finished / "metrics.jsonl") if "learning_rate_scale" in row]
    assert [row["images_seen"] for row in rows] == [24, 40, 64, 80, 96]
    assert all(np.isfinite(row["loss/discriminator/adversarial"]) for row in rows)
    assert all(row["speed/images_per_second"] > 0 for row in rows)


def test_progress_lines_name_images_speed_time_left_losses_and_score(finished):
    line = next(line for line in (finished / "log.txt").read_text().splitlines() if "images_seen 80 (" in line)
    for part in ("83 %", "img/s", "left", "frechet_random_conv", "discriminator/adversarial"):
        assert part in line


@pytest.mark.parametrize(
    "make",
    [
        lambda: LossLog(every_images=0),
        lambda: SampleGrid(count=0),
        lambda: FrechetScore(count=1),
        lambda: FrechetScore(split="all"),
        lambda: FrechetScore(max_real=1),
        lambda: FrechetScore(batch_size=0),
    ],
)
def test_impossible_arguments_are_refused(make):
    with pytest.raises(ValueError, match="="):
        make()


def test_report_holds_pictures_scores_and_configuration(finished):
    text = (finished / "report.html").read_text()
    assert text.count("data:image/png;base64,") >= 4
    assert "http://" not in text and "https://" not in text
    assert "frechet" in text.lower() and "lightning_modules.dcgan.DCGAN" in text
    header, *rows = (finished / "scores.csv").read_text().splitlines()
    assert header.startswith("images_seen,value,generated_at,metric") and len(rows) == 4


def test_run_directory_holds_what_later_verbs_need(finished):
    assert {path.name for path in finished.iterdir()} >= {
        "config.yaml", "versions.json", "status.json", "checkpoints", "samples", "metrics.jsonl", "scores.jsonl",
        "log.txt", "report.html", "scores.csv",
    }  # fmt: skip
    versions = json.loads((finished / "versions.json").read_text())
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert json.loads((finished / "status.json").read_text()) == {"state": "finished", "images_seen": 96}


def test_augmentation_changes_training_images_only(tmp_path):
    def phantoms(augmentation):
        data = Phantoms(ConstantSchedule((32, 32), 8, 80), 0, str(tmp_path), "kidney_ct", 20, augmentation=augmentation)
        data.setup()
        return data

    plain, changed = phantoms(None), phantoms(Augmentation("kidney_ct"))
    request = BatchRequest(0, np.arange(4), np.arange(4), (32, 32))
    before, after = (data.train_images()[request] for data in (plain, changed))
    assert all(not torch.equal(one, other) for one, other in zip(before["image"], after["image"], strict=True))
    assert before["id"] == after["id"] and torch.equal(before["label"], after["label"])
    assert torch.equal(next(plain.images("train", 4)), next(changed.images("train", 4)))


def test_nearest_training_images_lie_beside_the_generated(tmp_path):
    extra = "callbacks.nearest={_target_: callbacks.nearest.NearestTraining, every_images: 48, count: 4, columns: 2}"
    directory = train(tiny_config("progressive", tmp_path, extra, "data.val_fraction=0.2"))
    names = sorted(path.name for path in (directory / "samples").glob("nearest_*.png"))
    assert names == ["nearest_000000000048.png", "nearest_000000000096.png"]
    picture = Image.open(directory / "samples" / names[-1])
    assert picture.size == (4 * (2 * 16 + 2) + 2, 2 * (2 * 20 + 2) + 2)  # pixels are doubled to be seen
    rows = [row for row in read_rows(directory / "metrics.jsonl") if "nearest/ratio" in row]
    assert [row["images_seen"] for row in rows] == [48, 96]
    assert all(row["nearest/ratio"] > 0 and row["nearest/distance"] > 0 for row in rows)
    assert "nearest training image" in (directory / "report.html").read_text()


def test_generator_that_copies_has_a_ratio_of_zero(tmp_path):
    from callbacks.nearest import NearestTraining

    logged, read = {}, []

    class Module:
        images_seen, image_size, record, losses = 8, (8, 8), RunRecord(latest=logged), LossRecord()
        schedule = ConstantSchedule((8, 8), 8, 8)

        def sample(self, n, seed):
            return IMAGES[:n]

        def state_dict(self):
            return {"weight": torch.zeros(1)}

    class Data:
        def size(self, split):
            return 4

        def images(self, split, batch_size, rank=0, world_size=1):
            read.append(split)
            return iter(IMAGES.split(batch_size))

        def select(self, split, indices):
            read.append(split)
            return HELD_OUT[indices]

    class Strategy:
        def reduce_boolean_decision(self, decision, all):
            return decision

    class Trainer:
        default_root_dir, datamodule, loggers, strategy = tmp_path, Data(), [], Strategy()

    IMAGES, HELD_OUT = torch.rand(16, 1, 8, 8) * 2 - 1, torch.rand(4, 1, 8, 8) * 2 - 1
    NearestTraining(count=4).on_train_batch_end(Trainer(), Module(), None, None, 0)
    assert logged["nearest/ratio"] == 0.0
    assert sorted(read) == ["train", "val"]  # each once: the other processes wait


@pytest.mark.parametrize("reset, steps", [(True, {1.0}), (False, {1.0, 4.0})])
def test_optimizers_forget_at_a_new_stage_unless_told_otherwise(tmp_path, reset, steps):
    """At clock 32 the second stage has made one step and the first had made three."""
    directory = train(tiny_config("progressive", tmp_path, f"callbacks.fade_in.reset_optimizers={reset}"))
    state = torch.load(directory / "checkpoints" / "images_000000000032.ckpt", weights_only=True)
    for optimizer in state["optimizer_states"]:
        assert {float(entry["step"]) for entry in optimizer["state"].values()} == steps


def steps_at(directory, clock):
    """Steps that each optimizer's averages are of, in the checkpoint of a clock."""
    state = torch.load(directory / "checkpoints" / f"images_{clock:012d}.ckpt", weights_only=True)
    return [{float(entry["step"]) for entry in one["state"].values()} for one in state["optimizer_states"]]


def test_optimizers_forget_at_a_stage_whose_start_is_not_hit_and_a_resume_there_is_exact(tmp_path):
    """With batches of 3 from clock 40 on, the last stage is to begin at 60 and does so at 61."""
    first = train(tiny_config("progressive", tmp_path))
    smaller = ["schedule.batch_sizes=[3,3,3]", "allow_changes=true", "callbacks.checkpoint.every_images=1"]
    train(tiny_config("progressive", tmp_path, *smaller, f"resume={first}/checkpoints/images_000000000040.ckpt"))
    assert steps_at(first, 58) != [{1.0}, {1.0}] and steps_at(first, 64) == [{1.0}, {1.0}]
    whole = newest_checkpoint(first)
    train(tiny_config("progressive", tmp_path, *smaller, f"resume={first}/checkpoints/images_000000000061.ckpt"))
    assert_same_state(newest_checkpoint(first), whole.parent / "overtaken" / whole.name)


def test_optimizers_forget_at_a_stage_that_a_checkpoint_of_another_schedule_begins(tmp_path):
    first = train(tiny_config("progressive", tmp_path))
    shorter = ["schedule.stable_images=[16,16,12]", "allow_changes=true"]
    train(tiny_config("progressive", tmp_path, *shorter, f"resume={first}/checkpoints/images_000000000016.ckpt"))
    assert steps_at(first, 24) == [{1.0}, {1.0}]


def test_record_shows_the_growth(tmp_path, caplog):
    with caplog.at_level("INFO"):
        directory = train(tiny_config("progressive", tmp_path))
    text = (directory / "log.txt").read_text()
    assert "images_seen 24: growing to 10x8, batch 8" in text and "images_seen 64: growing to 20x16, batch 4" in text
    assert "10x8 alpha 0.80" in text  # clock 40
    assert "at least" in text
    rows = [json.loads(line) for line in (directory / "scores.jsonl").read_text().splitlines()]
    assert [row["generated_at"] for row in rows] == [[5, 4], [10, 8], [20, 16], [20, 16]]
    assert all(row["resolution"] == [20, 16] for row in rows)


def test_held_out_images_are_taken_from_all_over_the_split():
    from callbacks.real_images import spread

    class Data:
        def size(self, split):
            return 100

        def select(self, split, indices):
            return torch.arange(100)[indices]

    assert spread(Data(), "val", 4).tolist() == [0, 25, 50, 75]
    assert spread(Data(), "val", 60).tolist()[-2:] == [96, 98]
    assert spread(Data(), "val", 200).tolist() == [*range(100)]


def test_scores_csv_takes_rows_with_other_columns():
    rows = [{"images_seen": 0, "value": 1.0}, {"images_seen": 8, "value": 0.5, "new": "x"}]
    assert scores_csv(rows).splitlines() == ["images_seen,value,new", "0,1.0,", "8,0.5,x"]


@pytest.mark.parametrize("count", [0, 1, 3, 18, 19])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_processes_share_images_without_gap_and_repeat(count, world_size):
    shares = [share_of(SimpleNamespace(world_size=world_size, global_rank=rank), count) for rank in range(world_size)]
    assert [i for share in shares for i in share] == list(range(count))
