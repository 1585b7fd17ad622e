"""Hostile files, each fed through the real entry point: nothing is run, nothing is written elsewhere, memory is
bounded.

A payload would create the file ``marker``; a refusal is a sentence with exit code 2.
"""

import ast
import csv
import gzip
import json
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
from PIL import Image
from pydicom import dcmwrite
from test_malformed import png, refused

from callbacks.checkpoint import AtomicCheckpointIO, is_intact
from datamodules.ct_kidney import CTKidney
from datamodules.decoding import readers
from datamodules.decoding.dicom import read_dicom
from datamodules.decoding.dicom_headers import read_header
from datamodules.decoding.readers import read_grey
from datamodules.files.cache import ImageCache, content_hashes
from datamodules.files.cache_building import open_or_build
from datamodules.files.errors import DataError, UnreadableImageError
from datamodules.mammography import Mammography
from datamodules.records.chestxray14_tables import read_table
from experiments import evaluate, export, generate, run
from experiments.configuration.errors import ConfigError
from experiments.record.loading import load_run
from experiments.record.report import score_lines, write_report
from experiments.record.tracking import read_rows
from experiments.running.training import train
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
            if name in ("torch.load", "torch.hub.load", "yaml.load"):
                assert name == "torch.load" and keywords.get("weights_only") == "True", (path, ast.unparse(node))
            if name in ("np.load", "numpy.load"):
                assert keywords.get("allow_pickle") == "False", (path, ast.unparse(node))


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


FOREIGN = {
    "only a clock": (lambda content: {"images_seen": 88}, "it has no state_dict and no optimizer_states"),
    "no weights": (lambda content: {**content, "state_dict": {}}, "holds other networks than module describes"),
    "text for a tensor": (
        lambda content: {**content, "state_dict": {**content["state_dict"], "generator.x": "y"}},
        "1 tensors differ, e.g. generator.x",
    ),
    "a number for weights": (lambda content: {**content, "state_dict": 3}, "it has no state_dict)"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_checkpoint_of_something_else_is_refused(case, run_dir, tmp_path, capsys):
    change, expected = FOREIGN[case]
    path = run_dir / "checkpoints" / "images_000000000088.ckpt"
    torch.save(change(torch.load(path, weights_only=True)), path)
    assert expected in refused(capsys, *resume(tmp_path, path))


MALFORMED = {
    "a list": (lambda content: [content], "is no checkpoint of a Mirage run"),
    "no clock": (lambda content: {k: v for k, v in content.items() if k != "images_seen"}, "is no checkpoint"),
    "text for a clock": (lambda content: {**content, "images_seen": "88"}, "it has no images_seen"),
    "True for a clock": (lambda content: {**content, "images_seen": True}, "it has no images_seen"),
    "a clock below zero": (lambda content: {**content, "images_seen": -8}, "it has no images_seen"),
    "a list for losses": (lambda content: {**content, "losses": []}, "it has no losses"),
    "a list for facts": (lambda content: {**content, "data_facts": [1]}, "it has no data_facts"),
    "a dict for optimizers": (lambda content: {**content, "optimizer_states": {}}, "it has no optimizer_states"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_checkpoint_is_refused_by_every_verb(case, run_dir, tmp_path, capsys):
    change, expected = MALFORMED[case]
    path = run_dir / "checkpoints" / "images_000000000088.ckpt"
    torch.save(change(torch.load(path, weights_only=True)), path)
    for verb, *arguments in (
        (run, *resume(tmp_path, path)),
        (generate, str(path), "--count=2", f"--output={tmp_path / 'images'}"),
        (evaluate, str(path), f"output={tmp_path / 'scores'}"),
        (export, str(path), f"--output={tmp_path / 'exported'}"),
    ):
        assert verb.main(arguments) == 2
        said = capsys.readouterr().err
        assert f"{path}: is no checkpoint of a Mirage run" in said and expected in said


def test_malformed_losses_inside_a_checkpoint_are_one_sentence(run_dir):
    path = run_dir / "checkpoints" / "images_000000000088.ckpt"
    torch.save({**torch.load(path, weights_only=True), "losses": {"generator/adversarial": 3}}, path)
    with pytest.raises(ConfigError, match=r"images_000000000088\.ckpt: losses\.generator/adversarial: input should be"):
        load_run(path)


# Of the kinds that end in a traceback or not at all; test_checkpoint_check.py asks for those that end the process.
INNER = {
    "loops": ({"fit_loop": 3}, "loops.fit_loop: input should be"),
    "callbacks": ({"Health": 3}, "callbacks.Health: input should be"),
    "optimizer_states": ([], "optimizer_states: holds 0, the run has 2 optimizers"),
}


@pytest.mark.parametrize("part", INNER)
def test_part_that_does_not_fit_a_run_is_refused_before_it_begins_and_only_there(part, run_dir, tmp_path, capsys):
    value, expected = INNER[part]
    path = run_dir / "checkpoints" / "images_000000000080.ckpt"
    torch.save({**torch.load(path, weights_only=True), part: value}, path)
    assert f"{path}: {expected}" in refused(capsys, *resume(tmp_path, path))
    assert (path.parent / "images_000000000096.ckpt").exists()  # nothing was set aside for it
    assert load_run(path).module.images_seen == 80  # sampling needs no such part


@pytest.mark.parametrize("what", ["auto", "directory"])
def test_hostile_newest_checkpoint_is_not_unpickled(what, run_dir, tmp_path, capsys):
    hostile_checkpoint(run_dir / "checkpoints" / "images_000000999999.ckpt", tmp_path / "marker", "torch archive")
    said = refused(capsys, *resume(tmp_path, run_dir if what == "directory" else "auto"))
    assert "is no checkpoint of a Mirage run" in said
    assert not (tmp_path / "marker").exists()


def test_the_environment_cannot_turn_unpickling_on(run_dir, tmp_path, monkeypatch):
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
    data.setup()
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
    with pytest.raises(UnreadableImageError, match="is none of PNG, JPEG, TIFF and BMP"):
        read_grey(path)
    assert not (tmp_path / "marker").exists()


def test_deflated_dicom_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.decoding.dicom_headers.MAX_DEFLATED", 2**20)
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


# Run directories of strangers -----------------------------------------------------------------------------------------

ENTRIES = (
    "metrics.jsonl",
    "scores.jsonl",
    "log.txt",
    "status.json",
    "config.yaml",
    "versions.json",
    "report.html",
    ".lock",
    "samples",
    "samples/images_000000000999.png",
    "checkpoints",
    "checkpoints/images_000000000999.ckpt",
    "wandb",
)


@pytest.mark.parametrize("what", ["auto", "directory"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_links_out_of_a_run_directory_are_refused(entry, what, run_dir, tmp_path, capsys):
    outside, path = tmp_path / "outside", run_dir / entry
    if path.is_dir():
        path.rename(outside)
    elif entry == "wandb":
        outside.mkdir()
    else:
        outside.write_bytes(path.read_bytes() if path.exists() else b"precious")
        path.unlink(missing_ok=True)
    path.symlink_to(outside)
    before = {file: file.stat().st_mtime_ns for file in (outside, *outside.rglob("*"))}
    said = refused(capsys, *resume(tmp_path, run_dir if what == "directory" else "auto", "allow_changes=true"))
    assert f"{path}: is a symbolic link that leaves the run directory; remove it" in said
    assert {file: file.stat().st_mtime_ns for file in (outside, *outside.rglob("*"))} == before


def test_link_to_a_file_that_is_not_there_yet_is_refused(run_dir, tmp_path, capsys):
    (run_dir / "scores.csv").unlink()
    (run_dir / "scores.csv").symlink_to(tmp_path / "marker")
    assert "is a symbolic link" in refused(capsys, *resume(tmp_path, run_dir))
    assert not (tmp_path / "marker").exists()


def test_links_that_wandb_makes_do_not_stop_a_copy(run_dir, tmp_path):
    logs = run_dir / "wandb" / "offline-run-1" / "logs"
    logs.mkdir(parents=True)
    (tmp_path / "outside").touch()
    (logs / "debug-core.log").symlink_to(tmp_path / "outside")
    assert train(tiny_config("dcgan", tmp_path, "resume=auto", "callbacks.checkpoint.keep=3")) == run_dir
    assert not list(logs.iterdir()) and (tmp_path / "outside").exists()


def test_pipe_in_a_run_directory_is_refused_instead_of_waited_for(run_dir, tmp_path, capsys):
    (run_dir / "status.json").unlink()
    os.mkfifo(run_dir / "status.json")
    assert "status.json: is no file" in refused(capsys, *resume(tmp_path, "auto"))


def test_a_run_directory_may_itself_be_reached_by_a_link(run_dir, tmp_path):
    (tmp_path / "elsewhere").symlink_to(tmp_path / "runs")
    there = tmp_path / "elsewhere" / "dcgan" / run_dir.name
    (run_dir / "inside").symlink_to("samples")
    assert train(tiny_config("dcgan", tmp_path, f"resume={there}", "callbacks.checkpoint.keep=3")) == there


HOSTILE_STATUS = ('{"state": "running", "pid": "x"}', '{"pid": 1e400}', '{"pid": -1}', "[]", "[" * 100_000, "\xff")


@pytest.mark.parametrize("status", HOSTILE_STATUS, ids=range(len(HOSTILE_STATUS)))
def test_hostile_status_does_not_stop_a_resume(status, run_dir, tmp_path):
    (run_dir / "status.json").write_bytes(status.encode("latin-1"))
    (run_dir / "checkpoints" / "images_now.ckpt").write_bytes(b"x")
    (run_dir / "samples" / "images_<script>.png").write_bytes(b"x")
    assert train(tiny_config("dcgan", tmp_path, "resume=auto", "callbacks.checkpoint.keep=3")) == run_dir


@pytest.mark.parametrize(
    "text", ["a: &a [1]\nb: *a\n", "a: ${b\n", "\t", "[1]", "- " * 20_000, "a: !!python/name:os.x"]
)
def test_hostile_config_of_a_run_is_refused(text, run_dir, tmp_path, capsys):
    (run_dir / "config.yaml").write_text(text)
    refused(capsys, *resume(tmp_path, run_dir))


SCRIPT = "<script>alert(1)</script>"
HOSTILE_ROWS = (
    "5",
    "[1]",
    "null",
    '{"images_seen": "SCRIPT", "value": 1}',
    '{"images_seen": 1e999, "value": 1}',
    '{"images_seen": DIGITS, "value": 1}',
    '{"images_seen": 8, "value": "SCRIPT"}',
    '{"images_seen": 8, "value": NaN}',
    '{"images_seen": 8, "value": -Infinity}',
    '{"images_seen": 8, "value": DIGITS}',
    '{"images_seen": 8, "loss/SCRIPT": 1.5, "loss/$x^": 2, "loss/_": NaN, "loss/text": "SCRIPT"}',
    '{"resumed_at": "SCRIPT"}',
    "[" * 100_000,
    '{"images_seen": 8, "value": 2.5, "extractor": "SCRIPT\\u001b[31m", "split": "=1+1", "=cmd": "+x"}',
)


@pytest.mark.usefixtures("drawn")
def test_hostile_records_give_an_escaped_report_and_harmless_cells(run_dir):
    for name in ("metrics.jsonl", "scores.jsonl"):
        (run_dir / name).write_text("\n".join(HOSTILE_ROWS).replace("SCRIPT", SCRIPT).replace("DIGITS", "9" * 400))
    (run_dir / "status.json").write_text(json.dumps({"state": SCRIPT, "images_seen": SCRIPT}))
    (run_dir / "config.yaml").write_text(SCRIPT)
    report = write_report(run_dir).read_text()
    assert "<script" not in report and "&lt;script" in report
    header, row = csv.reader((run_dir / "scores.csv").read_text().splitlines())
    assert dict(zip(header, row, strict=True)) == {
        "images_seen": "8",
        "value": "2.5",
        "extractor": f"{SCRIPT} [31m",
        "split": "'=1+1",
        "'=cmd": "'+x",
    }
    assert "\x1b" not in "".join(score_lines(run_dir))


@pytest.mark.usefixtures("drawn")
def test_words_of_a_strangers_score_are_no_formulas(run_dir):
    row = {"images_seen": 8, "value": 2.5, "metric": "$x^$", "unit": "$y^$"}
    (run_dir / "scores.jsonl").write_text(json.dumps(row))
    assert "<td>$x^$</td><td>$y^$</td>" in write_report(run_dir).read_text()


# Caches and data sets -------------------------------------------------------------------------------------------------


def build_cache(folder: Path) -> list[ImageCache]:
    image = np.zeros((1, 2, 2), np.uint8)
    return open_or_build([folder / "images" / "x-key"], ["a", "b"], lambda i: [image], [(1, 2, 2)], 8, 0.0)


@pytest.mark.parametrize("entry", ["x-key", "x-key/images.bin", "x-key/index.json", ".x-key.building", "x-key.lock"])
def test_links_in_a_cache_are_refused(entry, tmp_path):
    cache, outside = tmp_path / "cache", tmp_path / "outside"
    build_cache(cache)
    path = cache / "images" / entry
    if path.exists():
        path.rename(outside)
    else:
        outside.mkdir()
    if entry in (".x-key.building", "x-key.lock"):
        shutil.rmtree(cache / "images" / "x-key")
    if outside.is_file():
        outside.write_bytes(outside.read_bytes() or b"precious")
    path.symlink_to(outside)
    before = outside.read_bytes() if outside.is_file() else sorted(outside.iterdir())
    with pytest.raises(OSError, match="is a symbolic link, which Mirage never makes there; remove it"):
        build_cache(cache)
    assert before == (outside.read_bytes() if outside.is_file() else sorted(outside.iterdir()))


def test_a_cache_folder_may_itself_be_a_link(tmp_path):
    (tmp_path / "large_disk").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "large_disk")
    assert build_cache(tmp_path / "cache")[0].names == ["a", "b"]


INDEX = {"names": ["a", "b"], "unreadable": [], "shape": [2, 1, 2, 2], "dtype": "uint8"}
HOSTILE_INDEX = (
    {"dtype": "object"},
    {"dtype": "O"},
    {"shape": [2, 1, 2, -2]},
    {"shape": "2122"},
    {"names": 3},
    {"names": ["a", 1]},
    {"names": ["a"]},
    {"unreadable": None},
)


@pytest.mark.parametrize("change", HOSTILE_INDEX, ids=str)
def test_hostile_index_of_a_cache_is_refused(change, tmp_path):
    build_cache(tmp_path)
    (tmp_path / "images" / "x-key" / "index.json").write_text(json.dumps({**INDEX, **change}))
    with pytest.raises(OSError, match=r"is damaged \(its index.json\); delete it"):
        build_cache(tmp_path)


@pytest.mark.parametrize("memo", ["[]", "5", '{"a": 1}', '{"a": [1, 2, 3]}', "[" * 100_000])
def test_hostile_memory_of_hashes_is_ignored(memo, tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "memo.json").write_text(memo.replace('"a"', json.dumps(str(tmp_path / "a"))))
    (found,) = content_hashes([tmp_path / "a"], tmp_path / "memo.json")
    assert len(found) == 64


NAMES = ("../../x.png", "/etc/x.png", "images/../../x.png", "00000001_000.png\0", '"00000001_000.png\n"', "link.png")


@pytest.mark.parametrize("name", NAMES)
def test_table_cannot_name_a_file_outside(name, tmp_path):
    path = tmp_path / "Data_Entry_2017.csv"
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    path.write_text(f"{header}\n{name},No Finding,0,1,50,M,PA\n")
    with pytest.raises(DataError, match=r"line 2: (image .* is not named like|a quoted cell does not end)"):
        read_table(path)


@pytest.mark.parametrize(
    "name", ["../x.png", "{outside}/x.png", "a/../../x.png", "x.png\0", "link.png", "folder/x.png"]
)
def test_list_cannot_name_a_file_outside(name, tmp_path):
    root, outside = tmp_path / "root", tmp_path
    root.mkdir()
    Image.new("L", (32, 32)).save(outside / "x.png")
    (root / "link.png").symlink_to(outside / "x.png")
    (root / "folder").symlink_to(outside)
    (tmp_path / "list.csv").write_text(f"file,patient\n{name.format(outside=outside)},1\n")
    arguments = {"root": str(root), "layout": "folder", "csv": str(tmp_path / "list.csv")}
    data = Mammography(ConstantSchedule((32, 32), 8, 80), 0, str(tmp_path / "cache"), **arguments)
    with pytest.raises(DataError, match=r"does not lie below data.root|not a readable CSV file \(line contains NUL"):
        data.records()
