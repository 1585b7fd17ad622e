"""Hostile files, each fed through the real entry point: nothing is run, nothing is written elsewhere, memory is
bounded.

A payload would create the file ``marker``; a refusal is a sentence with exit code 2.
"""

import ast
import gzip
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_YAML, newest_checkpoint, tiny, tiny_config, write_kidney
from dicom_files import mammogram, write_mammogram
from pydicom import dcmwrite
from test_malformed import png, refused

from callbacks.checkpoint import is_intact
from datamodules import readers
from datamodules.chestxray14 import read_table
from datamodules.ct_kidney import CTKidney
from datamodules.dicom import read_dicom, read_header
from datamodules.readers import DataError, UnreadableImageError, read_grey
from experiments.tracking import read_rows
from experiments.training import train
from lightning_modules.schedules import ConstantSchedule

PACKAGES = ("lightning_modules", "datamodules", "callbacks", "experiments")


class Payload:
    """Unpickling it creates the marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of a second that was then marked as unfinished."""
    folder = tmp_path_factory.mktemp("finished")
    directory = train(tiny_config("dcgan", folder, "callbacks.checkpoint.keep=3"))
    (directory / "status.json").write_text('{"state": "running"}')
    return directory


@pytest.fixture
def run_dir(finished, tmp_path) -> Path:
    """A copy of it, where ``tiny("dcgan", tmp_path)`` looks for its runs."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "dcgan" / finished.name))


def resume(tmp_path, what, *more):
    return tiny("dcgan", tmp_path, f"resume={what}", "callbacks.checkpoint.keep=3", *more)


# Code -----------------------------------------------------------------------------------------------------------------


def test_no_package_has_a_call_that_runs_what_it_reads():
    """Every torch.load is weights_only, and nothing unpickles, evaluates, or starts a shell."""
    banned = {"eval", "exec", "compile", "__import__", "system", "popen", "loads_pickle", "unsafe_load", "full_load"}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}, path
            if not isinstance(node, ast.Call):
                continue
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("shell", "False") == "False" and keywords.get("allow_pickle", "False") == "False", path
            name = ast.unparse(node.func)
            assert name not in banned and name.split(".")[-1] not in banned - {"eval", "compile"}, (path, name)
            if name in ("torch.load", "torch.hub.load", "yaml.load", "np.load", "numpy.load"):
                assert name == "torch.load" and keywords.get("weights_only") == "True", (path, ast.unparse(node))


def hostile_checkpoint(path: Path, marker: Path, kind: str) -> None:
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps(Payload(marker)))
    elif kind == "torch archive":
        torch.save({"images_seen": 8, "state_dict": Payload(marker)}, path)
    elif kind == "old torch format":
        torch.save({"images_seen": Payload(marker)}, path, _use_new_zipfile_serialization=False)
    elif kind == "TorchScript":
        torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(path))
    elif kind == "no tensors":
        torch.save([1, 2], path)


KINDS = ("bare pickle", "torch archive", "old torch format", "TorchScript", "no tensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["images_000000999999.ckpt", "best.ckpt"])
def test_hostile_checkpoint_named_by_path_is_refused(kind, name, run_dir, tmp_path, capsys):
    hostile_checkpoint(run_dir / "checkpoints" / name, tmp_path / "marker", kind)
    said = refused(capsys, *resume(tmp_path, run_dir / "checkpoints" / name))
    assert "is damaged" in said or "is no checkpoint of a Mirage run" in said
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("what", ["auto", "directory"])
def test_hostile_newest_checkpoint_is_not_unpickled(what, run_dir, tmp_path, capsys):
    hostile_checkpoint(run_dir / "checkpoints" / "images_000000999999.ckpt", tmp_path / "marker", "torch archive")
    said = refused(capsys, *resume(tmp_path, run_dir if what == "directory" else "auto"))
    assert "is no checkpoint of a Mirage run" in said
    assert not (tmp_path / "marker").exists()


def test_the_environment_cannot_turn_unpickling_on(run_dir, tmp_path, monkeypatch):
    from callbacks.checkpoint import AtomicCheckpointIO

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = run_dir / "checkpoints" / "images_000000999999.ckpt"
    hostile_checkpoint(path, tmp_path / "marker", "torch archive")
    with pytest.raises(pickle.UnpicklingError):
        AtomicCheckpointIO().load_checkpoint(path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("kind", [*KINDS, "other sizes", "compressed"])
def test_hostile_statistics_in_the_cache_are_computed_again(kind, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MIRAGE_CACHE", str(tmp_path / "cache"))
    short = "schedule.total_images=8"
    first = train(tiny_config("dcgan", tmp_path, short))
    (path,) = (tmp_path / "cache" / "statistics").iterdir()
    good = path.read_bytes()
    if kind == "other sizes":
        torch.save({"mean": torch.zeros(2), "covariance": torch.zeros(2, 2), "count": 3}, path)
    elif kind == "compressed":
        compressed(path, path)
    else:
        hostile_checkpoint(path, tmp_path / "marker", kind)
    second = train(tiny_config("dcgan", tmp_path, short))
    assert "the statistics are computed again" in caplog.text
    assert not (tmp_path / "marker").exists()
    assert path.read_bytes() == good
    assert [row["value"] for row in read_rows(second / "scores.jsonl")] == [
        row["value"] for row in read_rows(first / "scores.jsonl")
    ]


# Bombs ----------------------------------------------------------------------------------------------------------------


def compressed(source: Path, target: Path, bomb: int = 0) -> None:
    """Write an archive's entries deflated, and so many zero bytes more."""
    with zipfile.ZipFile(source) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        if bomb:
            archive.writestr("archive/data/bomb", bytes(bomb))


def test_compressed_checkpoint_is_refused_before_it_is_unpacked(run_dir, tmp_path, capsys):
    path = run_dir / "checkpoints" / "images_000000999999.ckpt"
    compressed(newest_checkpoint(run_dir), path, bomb=2**24)
    assert "the checkpoint is damaged" in refused(capsys, *resume(tmp_path, path))


def test_checkpoint_that_claims_more_than_it_holds_is_refused(run_dir, tmp_path, capsys):
    path = newest_checkpoint(run_dir)
    assert is_intact(path)
    raw = bytearray(path.read_bytes())
    directory = raw.rindex(b"PK\x01\x02")
    raw[directory + 24 : directory + 28] = struct.pack("<I", 2**32 - 2)  # the size that the last entry unpacks to
    path.write_bytes(raw)
    assert "the checkpoint is damaged" in refused(capsys, *resume(tmp_path, path))


def test_gzip_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_TEXT", 2**22)
    path = tmp_path / "Data_Entry_2017.csv.gz"
    path.write_bytes(gzip.compress(bytes(2**23)))
    with pytest.raises(DataError, match="holds more than 4 MiB"):
        read_table(path)


def test_png_bomb_is_counted_and_named(tmp_path, caplog):
    root = write_kidney(tmp_path / "root", per_class=25)
    bomb = png(width=50_000, height=50_000, bits=1, data=bytes(2**24))
    next(root.glob("*/*/Stone/Stone- (7).jpg")).write_bytes(bomb)
    data = CTKidney(ConstantSchedule((32, 32), 8, 80), 0, str(root), str(tmp_path / "cache"), block_size=5)
    data.prepare_data()
    assert "left out 1 unusable files: Stone- (7).jpg: " in caplog.text


def test_images_between_our_limit_and_pillows_are_refused(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(width=12_000, height=10_000, data=b""))
    with pytest.raises(UnreadableImageError, match="10000x12000 pixels; at most 100000000 are read"):
        read_grey(path)


def test_postscript_is_not_handed_to_ghostscript(tmp_path, monkeypatch):
    """Pillow recognises files by their content, and would start ``gs`` for one that begins like PostScript."""
    tool = tmp_path / "bin" / "gs"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\ntouch {tmp_path / 'marker'}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    path = tmp_path / "00000001_000.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n")
    with pytest.raises(UnreadableImageError, match="cannot identify image file"):
        read_grey(path)
    assert not (tmp_path / "marker").exists()


def test_deflated_dicom_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.dicom.MAX_DEFLATED", 2**20)
    stored = np.zeros((1200, 1200), np.uint16)
    path = write_mammogram(tmp_path / "bomb.dcm", stored, syntax="deflated", bits=12)
    assert path.stat().st_size < 20_000
    for read in (read_dicom, read_header):
        with pytest.raises(UnreadableImageError, match=r"bomb.dcm: unpacks to more than 1 MiB"):
            read(path)


def test_dicom_that_claims_a_huge_image_is_refused(tmp_path):
    dataset = mammogram(np.zeros((32, 32), np.uint16), bits=12)
    dataset.Rows = dataset.Columns = 65535
    dcmwrite(tmp_path / "a.dcm", dataset, enforce_file_format=True)
    with pytest.raises(UnreadableImageError, match="65535x65535 pixels; at most 100000000 are read"):
        read_dicom(tmp_path / "a.dcm")


LAUGHS = {
    "aliases": "a0: &a0 [x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    + "extends: demo\n",
    "interpolations": "a0: xxxxxxxxxx\n"
    + "".join(f"a{i}: '{f'${{a{i - 1}}}' * 9}'\n" for i in range(1, 30))
    + "extends: demo\n",
    "a large file": "extends: demo\n" + "# laugh\n" * 100_000,
}


@pytest.mark.parametrize("case", LAUGHS)
def test_a_few_lines_cannot_fill_the_memory(case, tmp_path):
    (tmp_path / "x.yaml").write_text(LAUGHS[case])
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
        "from experiments import run; sys.exit(run.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.yaml"), "--show"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr


# Configurations -------------------------------------------------------------------------------------------------------

TARGETS = {
    "os.system": "can only name classes of",
    "subprocess.Popen": "can only name classes of",
    "experiments.run.main": "can only name classes of",
    "callbacks.checkpoint.os.system": "there is no module",
    "callbacks.checkpoint.__class__": "has no class",
    "callbacks.files.__builtins__": "has no class",
    "callbacks.files.Path": "has no class 'Path'",
    "callbacks.checkpoint.Checkpoint": "has no class 'Checkpoint'",
    "callbacks..files.x": "can only name classes of",
    "lightning.__main__.x": "can only name classes of",
    "lightning.pytorch.callbacks.ModelCheckpoint": "can only name classes of",
    "lightning.pytorch.callbacks.OnExceptionCheckpoint": "can only name classes of",
    "lightning.pytorch.callbacks.LambdaCallback": "can only name classes of",
    "lightning.pytorch.callbacks.BatchSizeFinder": "can only name classes of",
    "lightning.pytorch.callbacks.RichProgressBar": "can only name classes of",
    "lightning.pytorch.callbacks.timer.Timer": "can only name classes of",
}


@pytest.mark.parametrize("target", TARGETS)
def test_target_outside_the_list_is_refused(target, tmp_path, capsys):
    (tmp_path / "x.yaml").write_text(
        f"extends: {TINY_YAML}\ncallbacks: {{evil: {{_target_: {target}, dirpath: {tmp_path / 'marker'}}}}}\n"
    )
    assert TARGETS[target] in refused(capsys, str(tmp_path / "x.yaml"))
    assert not (tmp_path / "marker").exists()


ENVIRONMENT = (
    "${oc.env:AWS_SECRET_ACCESS_KEY}",
    "${oc.decode:${oc.env:AWS_SECRET_ACCESS_KEY}}",
    "${oc.env:${schedule.variable}}",
    "${oc.select:nowhere,${oc.env:AWS_SECRET_ACCESS_KEY}}",
    "${oc.env:MIRAGE_CACHE,${oc.env:AWS_SECRET_ACCESS_KEY}}",
)


@pytest.mark.parametrize("text", ENVIRONMENT)
def test_a_file_cannot_copy_the_environment(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    (tmp_path / "x.yaml").write_text(f"extends: demo\nname: '{text}'\nschedule: {{variable: AWS_SECRET_ACCESS_KEY}}\n")
    said = refused(capsys, str(tmp_path / "x.yaml"), "--show")
    assert "AWS_SECRET_ACCESS_KEY cannot be used in a configuration, only those that begin with MIRAGE_" in said
    assert "wJalrXUtnFEMI" not in said


@pytest.mark.parametrize(
    "line", ["resume: auto", "resume: /elsewhere", "allow_changes: true", "tracking: online", "tracking: '${name}'"]
)
def test_a_file_cannot_set_what_belongs_to_a_launch(line, tmp_path, capsys):
    (tmp_path / "online.yaml").write_text(f"extends: demo\n{line}\n")
    assert "belongs to one launch" in refused(capsys, str(tmp_path / "online.yaml"), "--show")


def test_errors_do_not_quote_other_files(tmp_path, capsys):
    (tmp_path / "private.yaml").write_text("a: 1\nb: [confidential: {\n")
    (tmp_path / "x.yaml").write_text("extends: private\n")
    said = refused(capsys, str(tmp_path / "x.yaml"))
    assert "confidential" not in said and "line 3" in said


@pytest.mark.parametrize("override", ["name=../x", "name=/tmp/x", "wandb_project=../x", "wandb_project=.hidden"])
def test_names_stay_names(override, tmp_path, capsys):
    assert "must be a plain folder name" in refused(capsys, *tiny("dcgan", tmp_path), override)
