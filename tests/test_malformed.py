"""Malformed inputs: each gives its sentence or its counted skip, never a traceback or a silent default."""

import io
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, TINY_KIDNEY, tiny, write_kidney
from picture_files import bmp_file, chunk, exif, interlaced_png, page, png_file, tiff_file
from PIL import Image

from datamodules.ct_kidney import CTKidney, read_classes
from datamodules.files.errors import DataError
from experiments import cli, run
from lightning_modules.schedules import ConstantSchedule


def refused(capsys, *arguments):
    """Run the command line; return what it said after checking that it was a refusal in sentences."""
    code = run.main(list(arguments))
    output = capsys.readouterr()
    assert code == cli.EXIT_BAD_CONFIG, output.err
    assert "Traceback" not in output.err and "Error(" not in output.err
    header, *problems = output.err.strip().splitlines()
    assert "error" in header and problems
    return output.err


TARGET = "_target_: lightning_modules"
YAMLS = {
    "empty": ("", "schedule: is required"),
    "only a comment": ("# nothing\n", "schedule: is required"),
    "a list": ("- a\n- b\n", "must hold keys and values"),
    "a scalar": ("42\n", "cannot be read (Invalid loaded object type: int)"),
    "a string": ("just words\n", "just words=None: an experiment has no argument"),
    "numeric keys": ("1: 2\n", "must hold keys and values"),
    "tabs": ("schedule:\n\tbatch_size: 8\n", "not a valid YAML file"),
    "unclosed bracket": ("schedule: {batch_size: 8\n", "not a valid YAML file"),
    "unclosed quote": ("name: 'a\n", "not a valid YAML file"),
    "duplicate key": ("seed: 1\nseed: 2\n", "duplicate key seed"),
    "python object": ("seed: !!python/object/apply:os.system ['true']\n", "not a valid YAML file"),
    "python name": ("seed: !!python/name:os.system\n", "not a valid YAML file"),
    "unknown tag": ("seed: !secret x\n", "not a valid YAML file"),
    "undefined alias": ("seed: *x\n", "not a valid YAML file"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "not a valid YAML file"),
    "binary": (b"\x80\x81\xff\x00\xfe", "cannot be read"),
    "control character": ("seed: \x01\n", "not a valid YAML file"),
    "extends nothing": ("extends: no_such_file\n", "extends 'no_such_file', which does not exist"),
    "extends nearly something": ("extends: demmo\n", "did you mean 'demo'"),
    "extends a number": ("extends: 3\n", "expected a name or a list of names"),
    "extends a mapping": ("extends: {a: b}\n", "expected a name or a list of names"),
    "extends itself": ("extends: x\n", "extends itself"),
    "broken interpolation": (
        "extends: demo\nseed: ${nowhere.to.be.found}\n",
        "Interpolation key 'nowhere.to.be.found'",
    ),
    "interpolation syntax": ("extends: demo\nseed: ${\n", "not a valid YAML file"),
    "environment unset": ("extends: demo\nruns_dir: ${oc.env:MIRAGE_NOT_SET}\n", "MIRAGE_NOT_SET"),
    "unknown resolver": ("extends: demo\nseed: ${shell:ls}\n", "Unsupported interpolation type shell"),
    "interpolation circle": ("extends: demo\nseed: ${seed}\n", "Recursive"),
    "no schedule": ("module: {}\ndata: {}\n", "schedule: is required"),
    "schedule null": ("extends: demo\nschedule: null\n", "module.image_size: ConfigTypeError"),
    "schedule a list": ("extends: demo\nschedule: [1]\n", "module.image_size: TypeError"),
    "data null": ("extends: demo\ndata: null\n", "data=None: expected dict"),
    "data a list": ("extends: demo\ndata: [1]\n", "data=[1]: expected dict"),
    "callback a number": ("extends: demo\ncallbacks: {ema: 3}\n", "callbacks.ema=3: expected"),
    "callback without class": ("extends: demo\ncallbacks: {mine: {a: 1}}\n", "callbacks.mine: names no class"),
    "unknown top level": ("extends: demo\nschedul: 1\n", "did you mean 'schedule'"),
    "yes for a number": ("extends: demo\nseed: yes\n", "seed=True: expected int"),
    "extractor without class": (
        "extends: demo\ncallbacks: {score: {extractor: {_target_: lightning_modules.metrics.features.Inceptionv3}}}\n",
        "did you mean 'InceptionV3'",
    ),
}


@pytest.mark.parametrize("case", YAMLS)
def test_malformed_yaml(case, tmp_path, capsys):
    content, expected = YAMLS[case]
    path = tmp_path / "x.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert expected in refused(capsys, str(path))


FILES = {
    "no such file": ("missing.yaml", "there is no such file"),
    "no such name": ("no_such_experiment", "is no experiment"),
    "nearly a name": ("dcgan_ct_kidny_64", "did you mean 'dcgan_ct_kidney_64'"),
    "a folder": ("experiments", "is no experiment"),
    "a folder named like a file": ("folder.yaml", "there is no such file"),
    "up the tree": ("../../etc/passwd", "is no experiment"),
}


@pytest.mark.parametrize("case", FILES)
def test_wrong_file(case, tmp_path, capsys, monkeypatch):
    (tmp_path / "folder.yaml").mkdir()
    monkeypatch.chdir(tmp_path)
    name, expected = FILES[case]
    assert expected in refused(capsys, name)


OVERRIDES = {
    "seed": "an override is written key=value",
    "=3": "an override is written key=value",
    "seed=": "seed=None: expected int",
    "a b=3": "an override is written key=value",
    "schedule..batch_size=3": "an override is written key=value",
    "seed=[1": "the value is not valid YAML",
    "seed=1.5": "seed=1.5: expected int, got float",
    "seed=-1": "seed=-1: must lie in",
    "seed=true": "seed=True: expected int, got bool",
    "name=a/b": "name='a/b': must be a plain folder name",
    "name=..": "name='..': must be a plain folder name",
    "tracking=on-line": "tracking='on-line': expected one of 'offline', 'online', 'disabled'",
    "resume=/no/such/run": "resume=/no/such/run: expected auto, a run directory, or a checkpoint",
    "schedule.batch_size=0": "schedule.batch_size=0: must be at least 1",
    "schedule.batch_size=8.5": "schedule.batch_size=8.5: expected int",
    "schedule.batch_size=nan": "schedule.batch_size='nan': expected int",
    "schedule.total_images=3": "schedule.total_images=3: must be at least one batch (8)",
    "schedule.resolution=32": "schedule.resolution=32: expected tuple[int, int]",
    "schedule.resolution=[32]": "schedule.resolution=[32]: expected tuple[int, int]",
    "schedule.resolution=[33,32]": "module.image_size=[33, 32]: height and width must be a small grid doubled",
    "schedule._target_=ConstantSchedule": "a configuration can only name classes of",
    "module.gradient_clip_norm=0": "module.gradient_clip_norm=0.0: must be positive",
    "module.image_channels=7": "module.image_channels=7: must be 1 to 4",
    "module.generator_channels=0": "module.generator_channels=0: must be at least 1",
    "module.learning_rate=-1": "module.learning_rate=-1.0: must be a positive number",
    "module.learning_rate=.nan": "module.learning_rate=nan",
    "module.beta1=2": "module.beta1=2.0: must lie in",
    "module.image_size=[64]": "module.image_size=[64]: give height and width",
    "module._target_=lightning": "a configuration can only name classes of",
    "module.seed=1": "module.seed=1: is set by Mirage itself",
    "module._target_=lightning_modules.dcgan.DCGANN": "did you mean 'DCGAN'",
    "module._target_=lightning_modules.dcga.DCGAN": "did you mean 'lightning_modules.dcgan'",
    "module._target_=callbacks.ema.GeneratorEMA": "GeneratorEMA is not a PhasedModule",
    "module._target_=lightning_modules.step.PhasedModule": "PhasedModule is abstract; name a class that derives",
    "data.count=1": "data.count=1: must be at least 2",
    "data.val_fraction=1.5": "data.val_fraction=1.5",
    "data.augmentation.flip_lr=2": "data.augmentation.flip_lr=2.0: a probability lies in 0..1",
    "data.augmentation.flip=1": "did you mean 'flip_lr'",
    "data.augmentation=5": "data.augmentation=5: expected a node that describes a Augmentation",
    "data.num_workers=-1": "data.num_workers=-1: must not be negative",
    "callbacks.checkpoint.every_images=0": "callbacks.checkpoint.every_images=0: must be positive",
    "callbacks.score.split=training": "callbacks.score.split='training': must be train, val or test",
    "callbacks.ema.decay_per_step=0.9": "give one of half_life_images and decay_per_step",
    "trainer.precision=16-mixed": "trainer.precision='16-mixed': expected one of '32-true', 'bf16-mixed'",
    "trainer.devices=0": "trainer.devices=0: must be at least 1",
    "trainer.accelerator=gpu": "no GPU is visible on this machine",
    "trainer.max_epochs=3": "TrainerSettings has no argument 'max_epochs'; time is counted in images: schedule.total",
    "trainer.accumulate_grad_batches=2": "'accumulate_grad_batches'; a step sees schedule.batch_size images",
    "trainer.gradient_clip_val=1": "'gradient_clip_val'; module.gradient_clip_norm clips",
    "trainer.max_steps=9": "'max_steps'; time is counted in images: schedule.total_images",
    "trainer.max_time=1h": "'max_time'; a run ends by schedule.total_images",
    "trainer.val_check_interval=9": "'val_check_interval'; callbacks.score.every_images says",
    "trainer.sync_batchnorm=true": "'sync_batchnorm'; on several GPUs it is on by itself",
    "batch_size=8": "an experiment has no argument 'batch_size'; did you mean 'schedule.batch_size'?",
    "lerning_rate=1": "an experiment has no argument 'lerning_rate'; did you mean 'module.learning_rate'?",
    "seeds=1": "an experiment has no argument 'seeds'; did you mean 'seed'?",
    "schedule.resolution[0]=4": "single elements cannot be set; write the whole list, schedule.resolution=[...]",
    "+seed=3": "keys are added as they are changed, without +: seed=3",
    "~callbacks.score": "null leaves something out: callbacks.score=null",
    "runs_dir=/proc/nowhere": "runs_dir=/proc/nowhere: cannot be written to",
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_malformed_override(override, tmp_path, capsys):
    import torch

    if override == "trainer.accelerator=gpu" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    name, *rest = tiny("dcgan", tmp_path)
    assert OVERRIDES[override] in refused(capsys, name, *rest, override)


def png(width=64, height=64, bits=8, colour=0, data=None, crc=True):
    """Return a PNG with any header, true or not."""

    def chunk(kind, body):
        check = zlib.crc32(kind + body) if crc else 0
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"\x00" * ((width + 1) * height) if data is None else data)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def encoded(array, kind, **settings):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **settings)
    return buffer.getvalue()


def written(write, *arguments, **settings):
    """Return what a function writes to the path that is its first argument."""
    with tempfile.TemporaryDirectory() as folder:
        return write(Path(folder) / "file", *arguments, **settings).read_bytes()


GREY = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
COLOUR = np.dstack([GREY, GREY[::-1], GREY.T])
JPEG = encoded(np.repeat(GREY[..., None], 3, axis=-1), "JPEG")
IMAGES = {
    "empty": b"",
    "text": b"this is no image",
    "html error page": b"<html><body>404 not found</body></html>",
    "zeros": b"\x00" * 500,
    "only a JPEG marker": b"\xff\xd8\xff",
    "JPEG cut in its header": JPEG[:100],
    "JPEG cut in its data": JPEG[: len(JPEG) * 2 // 3],
    "JPEG with a broken header": JPEG[:2] + b"\x00" * 60 + JPEG[62:],
    "PNG signature only": b"\x89PNG\r\n\x1a\n",
    "PNG cut": png()[:60],
    "PNG of no size": png(width=0),
    "PNG of a billion pixels": png(width=40_000, height=40_000, data=b""),
    "PNG with wrong checksums": png(crc=False),
    "PNG without pixels": png(data=b""),
    "PNG with too few pixels": png(data=b"\x00" * 100),
    "PNG of unknown depth": png(bits=7),
    "PNG of unknown colour": png(colour=5),
    "colour PNG": encoded(COLOUR, "PNG"),
    "transparent PNG": encoded(np.dstack([GREY, GREY, GREY, GREY]), "PNG"),
    "CMYK JPEG": encoded(np.asarray(Image.fromarray(COLOUR).convert("CMYK")), "TIFF"),
    "another size": encoded(GREY[:40], "PNG"),
    "16 bits beyond the range": encoded(GREY.astype(np.uint16) * 100, "PNG"),
    "float with NaN": encoded(np.full((64, 64), np.nan, np.float32), "TIFF"),
    "negative values": encoded(np.full((64, 64), -5, np.int32), "TIFF"),
    "PNG with a transparent colour": written(png_file, GREY, 8, 0, chunk(b"tRNS", struct.pack(">H", 4))),
    "PNG that is an animation": written(png_file, GREY, 8, 0, chunk(b"acTL", struct.pack(">II", 3, 0))),
    "colours of 16 bits": written(png_file, COLOUR.astype(np.uint16) * 257, 16, 2),
    "12 bits in 16-bit colours": written(png_file, np.stack([GREY.astype(np.uint16) * 16] * 3, axis=-1), 16, 2),
    "alpha of 16 bits": written(png_file, np.stack([GREY, GREY], axis=-1).astype(np.uint16), 16, 4),
    "palette of colours": encoded(np.asarray(Image.fromarray(COLOUR).quantize(64).convert("RGB")), "PNG"),
    "TIFF of two pages": written(tiff_file, page(GREY, 8), page(GREY, 8)),
    "TIFF cut": written(tiff_file, page(GREY, 8))[:500],
    "TIFF of 16 bits, white is zero": written(tiff_file, page(GREY.astype(np.uint16), 16, 0)),
    "turned to another size": encoded(GREY[:40], "JPEG", exif=b"Exif\0\0" + exif(6)),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n",
    "GIF": encoded(GREY, "GIF"),
}
# What looks odd and holds the same picture.
ODD = {
    "PNG called JPEG": encoded(GREY, "PNG"),
    "RGB": encoded(np.stack([GREY] * 3, axis=-1), "PNG"),
    "opaque RGBA": encoded(np.dstack([GREY, GREY, GREY, np.full_like(GREY, 255)]), "PNG"),
    "opaque grey and alpha": written(png_file, np.stack([GREY, np.full_like(GREY, 255)], axis=-1), 8, 4),
    "palette of greys": encoded(np.asarray(Image.fromarray(GREY).convert("P")), "PNG"),
    "interlaced": written(interlaced_png, GREY, 8, greyscale=True),
    "gamma, resolution and a comment": written(
        png_file, GREY, 8, 0, chunk(b"gAMA", struct.pack(">I", 10_000)) + chunk(b"tEXt", b"Comment\0none")
    ),
    "bytes behind the end": encoded(GREY, "PNG") + bytes(100),
    "16 bits within the range": encoded(GREY.astype(np.uint16), "PNG"),
    "16-bit colours that are grey": written(png_file, np.stack([GREY.astype(np.uint16)] * 3, axis=-1), 16, 2),
    "upside down and turned back": encoded(GREY[::-1, ::-1], "PNG", exif=b"Exif\0\0" + exif(3)),
    "TIFF": written(tiff_file, page(GREY, 8)),
    "TIFF, white is zero": written(tiff_file, page(255 - GREY, 8, 0)),
    "TIFF, big endian": written(tiff_file, page(GREY, 8, order=">"), order=">"),
    "BMP": written(bmp_file, np.stack([GREY] * 3, axis=-1), 24),
}


@pytest.fixture(scope="module")
def hundred_images(tmp_path_factory):
    return write_kidney(tmp_path_factory.mktemp("hundred"), per_class=25)


@pytest.mark.parametrize("case", IMAGES)
def test_malformed_image_is_skipped_counted_and_named(case, hundred_images, tmp_path, caplog):
    root = tmp_path / "root"
    root.symlink_to(hundred_images)
    victim = next(hundred_images.glob("*/*/Stone/Stone- (7).jpg"))
    good = victim.read_bytes()
    try:
        victim.write_bytes(IMAGES[case])
        data = CTKidney(ConstantSchedule((32, 32), 8, 80), 0, str(root), str(tmp_path / "cache"), block_size=5)
        data.check()
        data.prepare_data()
        data.setup()
        strict = CTKidney(ConstantSchedule((32, 32), 8, 80), 0, str(root), str(tmp_path / "strict"), max_unreadable=0.0)
        with pytest.raises(DataError, match=r"1 of 100 files cannot be used.*Stone- \(7\).jpg"):
            strict.prepare_data()
    finally:
        victim.write_bytes(good)
    assert "left out 1 unusable files: " in caplog.text and "Stone- (7).jpg: " in caplog.text
    assert sum(data.size(split) for split in ("train", "val", "test")) == 99


@pytest.mark.parametrize("case", ODD)
def test_odd_image_is_read_as_the_picture_that_it_shows(case, tmp_path):
    (tmp_path / "Stone- (7).jpg").write_bytes(ODD[case])
    for label in CLASSES:
        (tmp_path / label).mkdir()
    path = (tmp_path / "Stone- (7).jpg").rename(tmp_path / "Stone" / "Stone- (7).jpg")
    data = CTKidney(ConstantSchedule((64, 64), 8, 80), 0, str(tmp_path), str(tmp_path / "cache"))
    (record,) = data.records()
    assert record.path == path
    np.testing.assert_array_equal(data.read(record)[0], GREY)


HEADER = ",image_id,path,diag,target,Class\n"
GOOD = "0,Tumor- (1),x,Tumor,3,Tumor\n"
CSVS = {
    "empty": ("", "has no column image_id and no column Class"),
    "only a header": (HEADER, "holds no row"),
    "no class column": (",image_id,path\n0,Tumor- (1),x\n", "has no column Class"),
    "no id column": (",image,Class\n0,Tumor- (1),Tumor\n", "has no column image_id"),
    "semicolons": (HEADER.replace(",", ";") + GOOD.replace(",", ";"), "has no column"),
    "unknown class": (HEADER + "0,Tumor- (1),x,Tumour,3,Tumour\n", "line 2: class 'Tumour' of 'Tumor- (1)' is none of"),
    "class in the wrong case": (HEADER + "0,Tumor- (1),x,t,3,TUMOR\n", "class 'TUMOR'"),
    "short row": (HEADER + "0,Tumor- (1)\n", "class None of 'Tumor- (1)'"),
    "empty id": (HEADER + "0,,x,Tumor,3,Tumor\n", "class 'Tumor' of ''"),
    "two classes for one image": (HEADER + GOOD + "1,Tumor- (1),x,Cyst,0,Cyst\n", "is both 'Tumor' and 'Cyst'"),
    "unclosed quote": (HEADER + '0,"Tumor- (1),x,Tumor,3,Tumor\n', "is not a readable CSV file"),
    "binary": (b"\x89PNG\x00\xff\xfe\x80", "is not a readable CSV file"),
    "NUL bytes": (HEADER.encode() + b"0,\x00,\x00\n", "kidneyData.csv"),
    "UTF-16": ((HEADER + GOOD).encode("utf-16"), "is not a readable CSV file"),
    "contradicts the folder": (HEADER + "0,Tumor- (1),x,Cyst,0,Cyst\n", "says 'Cyst' of 'Tumor- (1)'"),
}


@pytest.mark.parametrize("case", CSVS)
def test_malformed_csv(case, hundred_images, tmp_path, capsys):
    content, expected = CSVS[case]
    root = tmp_path / "root"
    root.mkdir()
    for label in CLASSES:
        (root / label).symlink_to(next(hundred_images.glob(f"*/*/{label}")))
    (root / "kidneyData.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert expected in refused(capsys, str(TINY_KIDNEY), f"runs_dir={tmp_path / 'runs'}", f"data.root={root}")


def test_correct_csv_is_read(tmp_path):
    path = tmp_path / "kidneyData.csv"
    path.write_text(HEADER + GOOD + '1,Cyst- (2),"a, b",Cyst,0,Cyst\n')
    assert read_classes(path, CLASSES) == {"Tumor- (1)": "Tumor", "Cyst- (2)": "Cyst"}


def test_there_are_a_hundred_of_them():
    assert len(YAMLS) + len(FILES) + len(OVERRIDES) + len(IMAGES) + len(CSVS) >= 130
