"""What leaves the machine: a run directory holds no secret, no patient's id, and no name of a file of the data."""

import csv
import json
import os
import socket
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_YAML, run_cli, tiny, tiny_config
from dicom_files import mammogram, write_mammogram
from PIL import Image
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from test_malformed import refused

from datamodules.files.cache import ImageCache
from datamodules.files.errors import DataError
from datamodules.files.pseudonyms import HIDDEN, UNSAVED, Pseudonyms, quoted, remember
from datamodules.mammography import Mammography
from datamodules.records.records import Intensity
from datamodules.writing.writers import write_dicom, write_png8
from experiments import cli, run
from experiments.configuration import redaction
from experiments.record.run_directory import read_status
from experiments.running.logs import log_file
from experiments.running.training import train
from lightning_modules.schedules import ConstantSchedule

SECRET = "s3cr3t-value-of-this-test"


def everything_in(directory: Path) -> bytes:
    """Return the names and contents of all files of a run directory, entries of archives on their own."""
    found = b""
    for path in directory.rglob("*"):
        found += str(path.relative_to(directory)).encode() + b"\n"
        if path.is_file():
            found += path.read_bytes()
        if path.suffix == ".ckpt":
            with zipfile.ZipFile(path) as archive:
                found += b"".join(archive.read(name) for name in archive.namelist())
    return found


# Secrets --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_secret_of_the_environment_is_written(tmp_path):
    names = ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "DB_PASSWORD", "MY_SECRET")
    environment = {name: f"{SECRET}-{name}" for name in names}
    code = (  # a library that logs what it should not, in the middle of the real command line
        "import logging, os, sys; from experiments import run; from experiments.running import training\n"
        "fit = training.fit\n"
        "def talkative(*arguments):\n"
        "    logging.getLogger('library').error('%s https://me:hunter2@host/x', dict(os.environ))\n"
        "    fit(*arguments)\n"
        "    raise RuntimeError(os.environ['HF_TOKEN'])\n"
        "training.fit = talkative\n"
        "sys.exit(run.main(sys.argv[1:]))"
    )
    arguments = tiny("dcgan", tmp_path, "tracking=offline")
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    (directory,) = (tmp_path / "runs" / "dcgan").iterdir()
    found = everything_in(directory)
    assert "library: {" in (directory / "log.txt").read_text() and (directory / "report.html").exists(), done.stderr
    assert SECRET.encode() not in found and b"hunter2" not in found
    assert SECRET not in done.stderr.split("Traceback")[0]


def test_failure_is_recorded_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr("lightning.Trainer.fit", lambda *a, **k: (_ for _ in ()).throw(RuntimeError(f"x {SECRET}")))
    with pytest.raises(RuntimeError):
        train(tiny_config("dcgan", tmp_path))
    (directory,) = (tmp_path / "runs" / "dcgan").iterdir()
    assert read_status(directory)["reason"] == "RuntimeError: x ***"


SECRETS = {
    "data.root=https://me:hunter2@host/data": "data.root: holds a password in a URL",
    "callbacks.password=hunter2": "callbacks.password: looks like a secret",
    "data.api_key=hunter2": "data.api_key: looks like a secret",
    "callbacks.mine={auth_token: hunter2}": "callbacks.mine.auth_token: looks like a secret",
    f"data.root=/data/{SECRET}": "data.root: holds the value of HF_TOKEN",
    f"name={SECRET}": "name: holds the value of HF_TOKEN",
}


@pytest.mark.parametrize("override", SECRETS)
def test_configuration_with_a_secret_is_refused_without_showing_it(override, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    said = refused(capsys, *tiny("dcgan", tmp_path), override)
    assert SECRETS[override] in said and "hunter2" not in said and SECRET not in said
    assert not (tmp_path / "runs").exists()


def test_innocent_words_are_not_secrets(monkeypatch):
    for name in os.environ:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SHORT_KEY", "value")
    monkeypatch.setenv("FILE_KEY", str(TINY_YAML))
    assert not redaction.problems_of_secrets({"tokenizer": "a", "keys": ["b"], "url": "https://host:80/a@b", "x": None})
    text = "value of https://host:80/a@b in tokens of 3, secret sauce"
    assert redaction.redacted(text) == text
    assert redaction.redacted('"api_key": "abc", password=abc') == '"api_key": "***", password=***'


def test_wandb_is_told_nothing_of_user_machine_and_terminal(tmp_path):
    done = run_cli(
        *tiny("dcgan", tmp_path, "tracking=offline", "schedule.total_images=8"), USERNAME="user-of-this-test"
    )
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "runs" / "dcgan").iterdir()
    (file,) = directory.glob("wandb/*/*.wandb")
    found = file.read_bytes()
    assert b"experiments.run" not in found and b"tiny.yaml" not in found and b"user-of-this-test" not in found
    assert sys.executable.encode() not in found and b"images  " not in found  # the log's table of the data
    assert len(socket.gethostname()) < 6 or socket.gethostname().encode() not in found
    assert not (file.parent / "files" / "wandb-metadata.json").exists()
    assert {path.name for path in directory.rglob("*") if path.is_symlink()} <= {"debug-core.log"}


# Patients -------------------------------------------------------------------------------------------------------------

PATIENT = "P_XK4471_77"


def write_mammograms(root: Path) -> list[str]:
    """12 patients, two of whose files cannot be used, one twice; return what must not be written."""
    random = np.random.default_rng(0)
    for i in range(12):
        for view in ("CC", "MLO"):
            stored = random.integers(0, 4096, (50, 36)).astype(np.uint16)
            name = f"case{i}XK/{PATIENT}{i:02}_L-{view}_QZ{i:03}.dcm"
            write_mammogram(root / name, stored, bits=12, PatientID=f"{PATIENT}{i:02}", PatientName="Doe^XKJane")
    good = next(root.glob("case3XK/*CC*"))
    (root / "case3XK" / "copy_XKcopy.dcm").write_bytes(good.read_bytes())
    (root / "case4XK" / "XKempty^Doe.dcm").write_bytes(b"")
    write_mammogram(root / "case5XK" / "XKcolour.dcm", stored[:32, :32], bits=12, PhotometricInterpretation="RGB")
    return ["XK4471", "_QZ0", "XKcopy", "XKempty", "XKcolour", "XKJane", *(f"case{i}XK" for i in range(12))]


def write_chest(root: Path) -> list[str]:
    """20 patients with two films each, two of which cannot be used."""
    random = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    rows = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"]
    for i in range(40):
        patient = 47110000 + i // 2
        name = f"{patient:08}_{i % 2:03}.png"
        rows.append(f"{name},{('No Finding', 'Mass|Effusion', 'Hernia')[i % 3]},{i % 2},{patient},50,M,PA")
        Image.fromarray(random.integers(0, 256, (32, 32), dtype=np.uint8)).save(root / "images" / name)
    (root / "images" / "47110003_000.png").write_bytes(b"nothing")
    (root / "images" / "47110004_000.png").write_bytes((root / "images" / "47110005_000.png").read_bytes())
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join(rows) + "\n")
    return ["4711000", "4711001"]


DATA = {
    "mammograms": (
        write_mammograms,
        ["data._target_=datamodules.mammography.Mammography", "data.layout=folder", "data.max_unreadable=0.2"],
    ),
    "chest": (
        write_chest,
        ["data._target_=datamodules.chestxray14.ChestXray14", "data.split_by=stratified", "data.max_unreadable=0.2"],
    ),
}


def arguments_of(case, tmp_path):
    write, overrides = DATA[case]
    names = write(tmp_path / "clinic")
    yaml = tmp_path / "clinic.yaml"
    target, *rest = overrides
    yaml.write_text(
        f"extends: {TINY_YAML}\ndata:\n  _target_: {target.partition('=')[2]}\n  root: {tmp_path / 'clinic'}\n"
    )
    return names, [str(yaml), f"runs_dir={tmp_path / 'runs'}", f"data.cache_dir={tmp_path / 'cache'}", *rest]


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case != "chest")) for case in DATA])
def test_no_patient_and_no_file_of_the_data_is_named(case, tmp_path, caplog, monkeypatch):
    """The slow case in a process of its own, whose terminal W&B sees; the other in this one."""
    names, arguments = arguments_of(case, tmp_path)
    private = tmp_path / "private"
    monkeypatch.setenv("MIRAGE_PRIVATE", str(private))
    arguments += ["tracking=offline", "wandb_project=clinic"]
    if case == "mammograms":
        done = run_cli(*arguments)
        assert done.returncode == 0, done.stderr
        said = done.stderr
    else:
        assert run.main(arguments) == 0
        said = caplog.text
    (directory,) = (tmp_path / "runs" / "clinic").iterdir()
    log = (directory / "log.txt").read_text()
    assert "left out" in log and "byte-identical duplicates" in log and "p-" in log
    found = everything_in(directory)
    assert not [name for name in names if name.encode() in found]
    assert any(name in said for name in names)  # the operator sees which files they are
    with (private / "clinic.csv").open(newline="") as file:
        table = dict(csv.reader(file))
    shown = [word.strip(",.:;") for word in log.split() if word.startswith("p-")]
    assert shown and all(any(name in table[pseudonym] for name in names) for pseudonym in shown)
    for path in (private / "clinic.csv", private / "clinic.salt"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_run_that_fails_for_its_data_names_nobody(tmp_path, capsys):
    names, arguments = arguments_of("mammograms", tmp_path)
    assert run.main([*arguments, "data.max_unreadable=0", "tracking=offline"]) == cli.EXIT_BAD_CONFIG
    assert "XK" in capsys.readouterr().err
    (directory,) = (tmp_path / "runs" / "clinic").iterdir()
    assert read_status(directory)["reason"].startswith("DataError: the data cannot be used; the terminal said why")
    found = everything_in(directory)
    assert not [name for name in names if name.encode() in found]


def write_named(root: Path) -> list[str]:
    """Write files that a name in a tag makes unreadable, one for each text tag that a message can come from."""
    stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    window = {"WindowCenter": 9, "WindowWidth": 9}
    cases = [
        *({keyword: PERSON} for keyword in ("PhotometricInterpretation", "ViewPosition", "ImageLaterality")),
        *({keyword: PERSON} for keyword in ("SeriesDescription", "PresentationLUTShape", "ImageComments")),
        {**window, "VOILUTFunction": PERSON},
        {"transfer_syntax": PERSON},
        *({"raw": keyword} for keyword in ("WindowCenter", "RescaleSlope", "NumberOfFrames", "PixelAspectRatio")),
    ]
    for number, tags in enumerate(cases):
        dataset = mammogram(stored, bits=12, patient=f"P{number}")
        for keyword, value in (tags | {"ReferringPhysicianName": PERSON}).items():
            if keyword == "raw":
                tag = Tag(value)
                for other in ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept"):
                    dataset.add_new(other, "DS", "1")
                vr = "IS" if value in ("NumberOfFrames", "PixelAspectRatio") else "DS"
                dataset._dict[tag] = RawDataElement(tag, vr, 10, PERSON.encode(), 0, False, True)
            elif keyword == "transfer_syntax":
                dataset.file_meta.TransferSyntaxUID = "1.2.840.77777777"
            else:
                setattr(dataset, keyword, value)
        path = root / f"f{number}_L-CC.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, implicit_vr=False, little_endian=True, enforce_file_format=True)
    for number in range(30):
        write_mammogram(root / f"g{number}.dcm", np.roll(stored, number), bits=12, patient=f"G{number}")
    return [PERSON, "77777777"]


PERSON = "Mustermann"


def test_no_value_of_a_header_reaches_a_run_directory(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MIRAGE_PRIVATE", str(tmp_path / "private"))
    texts = write_named(tmp_path / "clinic")
    schedule = ConstantSchedule((32, 32), 4, 8)
    hide = Pseudonyms("mirage", tmp_path / "runs").hide
    for name in ("built.txt", "from_the_cache.txt"):  # a second start says again what the first has found
        with log_file(tmp_path / name, hide):
            data = Mammography(
                schedule, 0, str(tmp_path / "cache"), str(tmp_path / "clinic"), "folder", max_unreadable=0.5
            )
            data.prepare_data()
            data.setup()
        said = (tmp_path / name).read_text()
        assert "unusable files" in said and "contradicts its name" in said and HIDDEN in said
        assert not [text for text in texts if text.lower() in said.lower()]
    assert all(text.lower() in caplog.text.lower() for text in texts)  # the operator sees them
    assert data.size("train") >= 24


def test_texts_of_caches_from_before_quotes_had_marks_are_hidden_too(tmp_path, monkeypatch):
    monkeypatch.setenv("MIRAGE_PRIVATE", str(tmp_path / "private"))
    directory = tmp_path / "old"
    directory.mkdir()
    index = {"names": ["a"], "unreadable": [f"b.dcm: is {PERSON}", PERSON], "shape": [1, 1, 2, 2], "dtype": "uint8"}
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "images.bin").write_bytes(bytes((3, 4, 5, 9)))
    np.zeros(1, np.uint32).tofile(directory / "crc32.bin")
    cache = ImageCache(directory)
    assert PERSON in str(cache.unreadable) and cache.extremes() == {"a": (3, 9)}
    assert Pseudonyms("a", Path("runs")).hide("; ".join(cache.unreadable)) == f"b.dcm: {HIDDEN}; {HIDDEN}"


def test_a_file_cannot_end_its_quote(tmp_path, monkeypatch):
    monkeypatch.setenv("MIRAGE_PRIVATE", str(tmp_path))
    hide = Pseudonyms("a", Path("runs")).hide
    evil = f"x» {PERSON} « {PERSON}\x1b[2J\n{PERSON}"
    assert hide(f"is {quoted(evil)}, not grey") == f"is {HIDDEN}, not grey"
    assert "\x1b" not in quoted(evil) and "\n" not in quoted(evil)
    assert hide(f"is {quoted(evil)}"[:20]) == f"is {HIDDEN}"  # even where something cuts it off


def test_pseudonyms_are_stable_and_differ_between_projects(tmp_path, monkeypatch):
    monkeypatch.setenv("MIRAGE_PRIVATE", str(tmp_path))
    first = Pseudonyms("a", Path("runs")).of("XK1")
    assert Pseudonyms("a", Path("runs")).of("XK1") == first and len(first) == 14
    assert Pseudonyms("a", Path("runs")).of("XK2") != first
    assert Pseudonyms("b", Path("runs")).of("XK1") != first
    assert (tmp_path / "a.csv").read_text().count("XK1") == 1


def test_several_processes_make_one_salt(tmp_path):
    code = (
        "import sys; from pathlib import Path; from datamodules.files.pseudonyms import Pseudonyms\n"
        "p = Pseudonyms('a', Path('runs'))\n"
        "print(*[p.of(f'XK{i}') for i in range(50)])"
    )
    environment = {**os.environ, "MIRAGE_PRIVATE": str(tmp_path / "private")}
    command = [sys.executable, "-c", code]
    running = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    answers = {process.communicate()[0] for process in running}
    assert len(answers) == 1 and answers.pop().count("p-") == 50
    with (tmp_path / "private" / "a.csv").open(newline="") as file:
        assert {name for _, name in csv.reader(file)} == {f"XK{i}" for i in range(50)}
    assert sorted(path.name for path in (tmp_path / "private").iterdir()) == ["a.csv", "a.salt"]


@pytest.mark.parametrize("name", ["mirage.salt", "mirage.csv"])
def test_salt_or_table_that_others_can_read_is_refused(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MIRAGE_PRIVATE", str(tmp_path))
    (tmp_path / name).write_bytes(bytes(32))
    (tmp_path / name).chmod(0o640)
    said = refused(capsys, *tiny("dcgan", tmp_path))
    assert f"{tmp_path / name}: others can read it; run: chmod 600 {tmp_path / name}" in said


def test_salt_below_the_runs_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MIRAGE_PRIVATE", str(tmp_path / "runs" / "private"))
    assert "lies below runs_dir" in refused(capsys, *tiny("dcgan", tmp_path))


def test_damaged_salt_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MIRAGE_PRIVATE", str(tmp_path))
    (tmp_path / "a.salt").touch(0o600)
    with pytest.raises(DataError, match="is damaged; restore it"):
        Pseudonyms("a", Path("runs")).check()


def test_names_are_found_in_any_text(tmp_path, monkeypatch):
    monkeypatch.setenv("MIRAGE_PRIVATE", str(tmp_path))
    remember(("Stone/Stone- (907).jpg", "ward7/Doe Jane.dcm", "13", "=cmd|x"))
    pseudonyms = Pseudonyms("a", Path("runs"))
    of = pseudonyms.of
    for text, shown in {
        "cannot read Stone- (907).jpg: damaged": f"cannot read {of('Stone- (907).jpg')}: damaged",
        "/data/Stone/Stone- (907).jpg": f"/data/{of('Stone/Stone- (907).jpg')}",
        "in ward7, 'Doe Jane'": f"in {of('ward7')}, '{of('Doe Jane')}'",
        "Doe Janette, Stone 13, 13 images": "Doe Janette, Stone 13, 13 images",
    }.items():
        assert pseudonyms.hide(text) == shown
    pseudonyms.of("=cmd|x")
    assert "'=cmd|x" in (tmp_path / "a.csv").read_text()


def test_folder_that_cannot_be_written_costs_the_pseudonym_only(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MIRAGE_PRIVATE", str(tmp_path / "file" / "private"))
    remember(("XK-unsaved.dcm",))
    assert Pseudonyms("a", Path("runs")).hide("no XK-unsaved.dcm here") == f"no {UNSAVED} here"


def test_written_images_say_nothing_of_their_sources(tmp_path):
    intensity = Intensity(0, 255, 8, "grey level", "test")
    image = torch.zeros(1, 16, 16)
    write_dicom(image, tmp_path / "a.dcm", intensity, "made by a test", index=3)
    write_png8(image, tmp_path / "a.png", intensity)
    header = dcmread(tmp_path / "a.dcm")
    assert (header.PatientID, str(header.PatientName)) == ("SYNTHETIC-3", "SYNTHETIC^MIRAGE")
    texts = {element.keyword for element in header if element.VR in ("PN", "DA", "TM", "UI", "AE") and element.value}
    assert texts == {"PatientName", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"}
    with Image.open(tmp_path / "a.png") as written:
        assert set(written.info) <= {
            "Synthetic",
            "Software",
            "Comment",
            *(f"Intensity {x}" for x in ("low", "high", "unit", "meaning")),
        }
