"""Generated files depend on generator, seed and index alone, and a killed job goes on."""

import csv
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, children, cut_in_half, flip_a_bit, tiny_config
from PIL import Image

from experiments import generate as verb
from experiments.configuration.errors import ConfigError
from experiments.publishing.generating import Request, generate_files
from experiments.publishing.image_folder import SETTINGS, TABLE
from experiments.record.loading import generate, load_run
from experiments.running.training import train
from lightning_modules.networks.latents import CHUNK_IMAGES, chunk_size

COUNT = 2 * CHUNK_IMAGES + 3
MANY = 800


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tiny_config("dcgan", tmp_path_factory.mktemp("generate"), "callbacks.health=null"))


@pytest.fixture(scope="module")
def growing(tmp_path_factory):
    return train(tiny_config("progressive", tmp_path_factory.mktemp("generate"), "callbacks.health=null"))


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """The folder that others are compared with."""
    return generate_files(Request(run, COUNT, output=tmp_path_factory.mktemp("whole") / "images")).folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@contextmanager
def job(*arguments):
    """The command line in a process group of its own, which does not outlive the test."""
    command = [sys.executable, "-m", "experiments.generate", *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def workers(pid):
    """Processes that generate below a process, by the system's list."""
    return [child for child in children(pid) if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for_images(folder, count, process):
    while recorded(folder) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def recorded(folder):
    """Return the number of images that the folder's record holds: those beyond it are made again."""
    lines = [path.read_text().splitlines() for path in (folder / TABLE, folder / ".written.jsonl") if path.exists()]
    return sum(line.endswith("}") or line[:1].isdigit() for part in lines for line in part)


def test_batch_size_changes_no_byte(run, whole, tmp_path):
    other = generate_files(Request(run, COUNT, output=tmp_path / "images", batch_size=1))
    assert contents(other.folder) == contents(whole)


@pytest.mark.slow
def test_number_of_processes_changes_no_byte(run, whole, tmp_path):
    other = generate_files(Request(run, COUNT, output=tmp_path / "images", batch_size=1, processes=2))
    assert other.made == COUNT and contents(other.folder) == contents(whole)


@pytest.mark.slow
def test_number_of_processes_changes_no_byte_of_a_network_in_mid_fade(growing, tmp_path):
    checkpoint = growing / "checkpoints" / "images_000000000068.ckpt"
    folders = [
        generate_files(Request(checkpoint, 40, output=tmp_path / str(p), batch_size=b, processes=p, format="png16"))
        for p, b in ((1, 64), (2, 1))
    ]
    assert contents(folders[0].folder) == contents(folders[1].folder)


def test_threads_before_change_no_byte_and_are_put_back(run, whole, tmp_path):
    torch.set_num_threads(2)
    try:
        other = generate_files(Request(run, COUNT, output=tmp_path / "images"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert contents(other.folder) == contents(whole)


def test_another_seed_makes_other_images(run, whole, tmp_path):
    other = generate_files(Request(run, 1, seed=1, output=tmp_path / "images")).folder
    assert (other / "000000.png").read_bytes() != (whole / "000000.png").read_bytes()


def test_part_of_a_list_is_the_list(run):
    module = load_run(run).module
    images = torch.cat([images for _, images in generate(module, 0, 40, seed=5)])
    pieces = list(generate(module, 13, 20, seed=5))
    assert [first for first, _ in pieces] == [13, 16, 32]
    assert torch.equal(torch.cat([images for _, images in pieces]), images[13:33])
    assert torch.equal(images[16:32], module.sample(16, seed=5, start=16))


def test_large_images_are_computed_in_smaller_chunks():
    assert [chunk_size(size) for size in ((64, 64), (256, 256), (512, 256), (1024, 1024), (1280, 1024))] == [
        16,
        16,
        8,
        1,
        1,
    ]


def test_manifest_says_what_the_images_are(run, whole):
    said = json.loads((whole / SETTINGS).read_text())
    assert said["synthetic"] is True and said["count"] == COUNT and said["seed"] == 0
    assert said["weights_sha256"] == load_run(run).weights_sha256 and said["chunk"] == CHUNK_IMAGES
    assert said["resolution"] == [32, 32] and said["data_set"] == "Phantoms"
    assert said["intensity"] == {
        "low": 0.0,
        "high": 1.0,
        "bits": 8,
        "unit": "grey level / 255",
        "meaning": "phantom, brighter = denser",
    }
    assert said["versions"]["torch"] == torch.__version__.partition("+")[0]
    with (whole / TABLE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(COUNT))
    for row in rows:
        assert row["sha256"] == hashlib.sha256((whole / row["file"]).read_bytes()).hexdigest()
    assert str(run.parent.parent) not in (whole / SETTINGS).read_text()


@pytest.mark.parametrize("form", ["png8", "png16", "dicom"])
def test_files_hold_the_values_of_the_sample(run, tmp_path, form):
    folder = generate_files(Request(run, 3, format=form, output=tmp_path / form)).folder
    trained = load_run(run)
    images = torch.cat([images for _, images in generate(trained.module, 0, 3, seed=0)])[:, 0].double().numpy()
    low, high = trained.intensity.low, trained.intensity.high
    for i, image in enumerate(images):
        value = low + (image + 1.0) / 2.0 * (high - low)
        if form == "dicom":
            from pydicom import dcmread

            file = dcmread(folder / f"{i:06d}.dcm")
            assert file.SyntheticData == "YES" and "weights" in file.ImageComments
            level = float(file.RescaleSlope)
            read = file.pixel_array * level + float(file.RescaleIntercept)
        else:
            level = (high - low) / (255 if form == "png8" else 65535)
            with Image.open(folder / f"{i:06d}.png") as picture:
                assert picture.info["Synthetic"] == "yes"
                read = np.asarray(picture).astype(float) * level + low
        assert np.abs(read - value).max() <= 0.5 * level * (1 + 1e-6)


def test_what_is_there_is_kept_and_what_is_damaged_is_made_again(run, whole, tmp_path):
    request = Request(run, COUNT, output=tmp_path / "images")
    folder = generate_files(request).folder
    kept = (folder / "000001.png").stat().st_mtime_ns
    flip_a_bit(folder / "000000.png")
    cut_in_half(folder / "000017.png")
    (folder / "000034.png").unlink()
    (folder / ".000005.png.1.tmp").write_bytes(b"half")
    assert generate_files(request).made == 3
    assert (folder / "000001.png").stat().st_mtime_ns == kept and contents(folder) == contents(whole)
    assert generate_files(request).made == 0


def test_larger_count_adds_images_and_a_smaller_one_is_refused(run, whole, tmp_path):
    request = Request(run, 5, output=tmp_path / "images")
    assert generate_files(request).made == 5
    grown = generate_files(replace(request, count=COUNT))
    assert grown.made == COUNT - 5 and contents(grown.folder) == contents(whole)
    with pytest.raises(ConfigError, match="count: was 35, is 5"):
        generate_files(request)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed: was 0, is 1"),
        ({"truncation": 0.5}, r"truncation: was 1\.0, is 0\.5"),
        ({"format": "png16"}, "format: was 'png8', is 'png16'"),
    ],
)
def test_folder_of_other_images_is_refused(run, tmp_path, change, said):
    request = Request(run, 2, output=tmp_path / "images")
    before = contents(generate_files(request).folder)
    with pytest.raises(ConfigError, match=said):
        generate_files(replace(request, **change))
    assert contents(request.output) == before


def test_folder_of_other_weights_is_refused(run, tmp_path):
    request = Request(run, 2, output=tmp_path / "images")
    generate_files(request)
    with pytest.raises(ConfigError, match=r"images_seen: was 96, is 48(.|\n)*weights_sha256: was"):
        generate_files(replace(request, path=run / "checkpoints" / "images_000000000048.ckpt"))


def test_dicom_folder_of_an_older_writer_is_refused(run, tmp_path):
    """Its files have other bytes, and nothing else would say so."""
    request = Request(run, 2, format="dicom", output=tmp_path / "images")
    generate_files(request)
    settings = json.loads((request.output / "manifest.json").read_text())
    assert settings.pop("dicom_version") == 2
    (request.output / "manifest.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"dicom_version: was None, is 2"):
        generate_files(request)


def test_folder_with_something_else_is_refused_and_left_alone(run, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty and holds no manifest\.json"):
        generate_files(Request(run, 2, output=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_link_out_of_the_folder_is_refused(run, tmp_path):
    folder = generate_files(Request(run, 2, output=tmp_path / "images")).folder
    (tmp_path / "precious").write_text("mine")
    (folder / ".written.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(ConfigError, match="symbolic link"):
        generate_files(Request(run, 3, output=folder))
    assert (tmp_path / "precious").read_text() == "mine"


def test_damaged_record_costs_only_time(run, whole, tmp_path):
    request = Request(run, COUNT, output=tmp_path / "images")
    folder = generate_files(request).folder
    (folder / TABLE).write_bytes(b"index,sha256\n\x00,\xff\n")
    (folder / ".written.jsonl").write_bytes(b'{"index": 0, "sha2\n[1]\nnull\n')
    assert generate_files(request).made == COUNT and contents(folder) == contents(whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"truncation": 0.5}, "this network normalises its latents"),
        ({"labels": ("Cyst",)}, "ProgressiveGAN is unconditional: it cannot generate given labels"),
        ({"labels": ("Cist",)}, "has no class 'Cist'; did you mean 'Cyst'"),
    ],
)
def test_what_the_family_cannot_do_is_refused_before_any_file(growing, tmp_path, change, said):
    with pytest.raises(ConfigError, match=said):
        generate_files(Request(growing, 2, output=tmp_path / "images", **change))
    assert not (tmp_path / "images").exists()


def test_early_stage_makes_small_images_and_says_so(growing, tmp_path):
    checkpoint = growing / "checkpoints" / "images_000000000032.ckpt"
    outcome = generate_files(Request(checkpoint, 2, output=tmp_path / "images"))
    assert outcome.note.startswith("the generator is at stage 1, faded in by 40%: its images are 10x8; at the end")
    with Image.open(outcome.folder / "000001.png") as picture:
        assert picture.size == (8, 10)


def test_default_folders_lie_in_the_run(run):
    assert generate_files(Request(run, 1, seed=3)).folder == run / "generated" / "png8-seed3"
    checkpoint = run / "checkpoints" / "images_000000000048.ckpt"
    folder = generate_files(Request(checkpoint, 1, seed=3)).folder
    assert folder == run / "generated" / "images_000000000048-png8-seed3"


def test_command_line_says_what_is_wrong(run, tmp_path, capsys):
    assert verb.main([str(tmp_path), "--count", "2"]) == 2
    assert "is no run directory" in capsys.readouterr().err
    assert verb.main([str(run), "--count", "2", "--labels", "Stone", "--output", str(tmp_path / "x")]) == 2
    assert "DCGAN is unconditional" in capsys.readouterr().err
    for wrong in (["--count", "0"], ["--count", "2", "--truncation", "nan"], ["--count", "2", "--format", "bmp"]):
        with pytest.raises(SystemExit) as error:
            verb.main([str(run), *wrong])
        assert error.value.code == 2


def test_command_line_generates(run, whole, tmp_path, capsys):
    folder = tmp_path / "images"
    assert verb.main([str(run), "--count", str(COUNT), "--output", str(folder)]) == 0
    assert f"{COUNT} images ({COUNT} made now)" in capsys.readouterr().out
    assert contents(folder) == contents(whole)


def test_stop_leaves_a_whole_table_and_the_same_request_goes_on(run, whole, tmp_path):
    request = Request(run, COUNT, output=tmp_path / "images", batch_size=1)
    asked = iter([False, False, False])
    stopped = generate_files(request, lambda: next(asked, True))
    assert 0 < stopped.made < COUNT and stopped.missing == COUNT - stopped.made
    assert len((stopped.folder / TABLE).read_text().splitlines()) == stopped.made + 1
    assert generate_files(request).missing == 0
    assert contents(request.output) == contents(whole)


def test_second_process_in_a_folder_is_refused(run, tmp_path):
    import fcntl

    folder = generate_files(Request(run, 1, output=tmp_path / "images")).folder
    with (folder / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process"):
            generate_files(Request(run, 1, output=folder))


def test_refusal_reaches_the_first_process_whole():
    assert pickle.loads(pickle.dumps(ConfigError(["one", "two"]))).problems == ["one", "two"]


@pytest.fixture(scope="module")
def many(run, tmp_path_factory):
    return generate_files(Request(run, MANY, output=tmp_path_factory.mktemp("many") / "images")).folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "processes"),
    [(signal.SIGKILL, 1), (signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGKILL, 2), (signal.SIGINT, 2)],
)
def test_killed_job_goes_on(run, many, tmp_path, number, processes):
    folder = tmp_path / "images"
    with job(run, "--count", MANY, "--output", folder, "--processes", processes, "--batch-size", 16) as process:
        wait_for_images(folder, 40, process)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 85), out + err
    left = recorded(folder)
    assert 40 <= left < MANY
    if number != signal.SIGKILL:
        assert left == len(list(folder.glob("0*.png"))) and not list(folder.glob(".*.tmp"))
        assert f"stopped: {MANY - left} of {MANY}" in out
    outcome = generate_files(Request(run, MANY, output=folder))
    assert outcome.made == MANY - left
    assert contents(folder) == contents(many)


@pytest.mark.slow
@pytest.mark.parametrize(("whose", "number"), [("parent", 9), ("child", 9), ("group", 15)])
def test_no_process_outlives_the_others(run, tmp_path, whose, number):
    folder = tmp_path / "images"
    with job(run, "--count", 5000, "--output", folder, "--processes", 2, "--batch-size", 16) as process:
        wait_for_images(folder, 20, process)
        children = workers(process.pid)
        assert len(children) == 2
        if whose == "group":
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid if whose == "parent" else children[0], number)
        out, err = process.communicate(timeout=60)
        deadline = time.monotonic() + 30
        while any(map(is_alive, children)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    if whose == "child":
        assert process.returncode == 1 and "a process that makes images has died" in err
    if whose == "group":
        assert process.returncode == 85 and "the same command goes on" in out, err
