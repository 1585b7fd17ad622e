"""Failures that generators have, planted into real images: which scores see them."""

import csv

import pytest
import torch

from experiments.benchmarks.instruments.planted_failures import COPIES, PERFECT, main, phantoms, planted, run, table
from experiments.measuring.image_sets import RealImages
from experiments.measuring.rows import is_bad


@pytest.fixture(scope="module")
def data():
    return phantoms(1000, "schedule.resolution=[32,32]", "schedule.batch_size=8")


def test_failures_are_what_they_are_called(data):
    train, fresh = RealImages(data, ["train"], 1), RealImages(data, ["test"], 1, 100)
    labels = {record.name: record.labels for record in data.split_records("test")}
    sets = planted(fresh, train, [labels[name] for name in fresh.names])
    images = {name: one.read(0, len(one)) for name, one in sets.items()}
    assert torch.equal(images[PERFECT], fresh.read(0, 100))
    assert torch.pdist(images["collapse onto 10 %"].flatten(1)).lt(1.0).sum() == 10 * 45  # ten images, ten times each
    assert torch.allclose(images["20 % copies"][:20], train.read(0, 20), atol=0.06)
    assert torch.equal(images["20 % copies"][20:], fresh.read(20, 100))
    assert images["blur"].diff(dim=3).abs().mean() < 0.8 * images[PERFECT].diff(dim=3).abs().mean()
    assert images["shift of intensity"].mean() > images[PERFECT].mean() + 0.05
    kept = [name for name in fresh.names if "Cyst" not in labels[name]]
    assert len(images["no Cyst"]) == len(kept) < 100


@pytest.mark.slow
def test_every_large_failure_is_seen_and_copies_are_named(data, tmp_path):
    found = run(data, "quick", ["replicates=20"], tmp_path)
    bad = {failure: {row["name"] for row in result.rows if is_bad(row)} for failure, result in found.items()}
    assert len(bad[PERFECT]) <= 1  # of 20 scores, each outside its floor by chance now and then
    assert {"recall_random_conv", "coverage_random_conv"} <= bad["collapse onto 10 %"]
    assert "copied_share" in bad["20 % copies"]
    assert {"frechet_random_conv", "precision_random_conv"} <= bad["blur"]
    assert {"frechet_random_conv", "moment_agreement_mean"} <= bad["shift of intensity"]
    copies = set(range(int(COPIES * 400)))
    named = found["20 % copies"].named
    assert len(named & copies) >= 0.95 * len(copies) and len(named - copies) <= 0.03 * 400
    rows = table(found)
    assert rows[0][1] == PERFECT and len(rows) == 1 + len(found[PERFECT].rows)


@pytest.mark.slow
def test_the_command_writes_the_table_and_goes_on(tmp_path, capsys):
    arguments = ["--folder", str(tmp_path), "--count", "300", "--suite", "quick", "replicates=10"]
    arguments += [f"scores.{name}=null" for name in ("diversity", "moments", "density_coverage")]
    main(arguments)
    rows = list(csv.reader((tmp_path / "planted_failures.csv").open()))
    assert rows[0][0] == "score" and len(rows[0]) == 7
    first = (tmp_path / "scores.partial.jsonl").read_bytes()
    main(arguments)
    assert (tmp_path / "scores.partial.jsonl").read_bytes() == first  # nothing was measured again
