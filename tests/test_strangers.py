"""Files that may be a stranger's are what is declared of them, or are refused in a sentence."""

import json

import pytest

from experiments.configuration.errors import ConfigError
from experiments.record.strangers import (
    EvaluationFile,
    FinishedRows,
    HealthFile,
    Made,
    ManifestFile,
    ScoreRow,
    parsed,
    read_declared,
)

ROW = {"name": "fid", "score": "fid", "value": 1.0, "better": "lower", "fingerprint": {}}
WHOLE = {
    **ROW,
    **dict.fromkeys(("low", "high", "floor", "floor_low", "floor_high", "at_floor_size"), 1.0),
    "freedom": 9,
    "replicates": [1.0, 2],
    "verdict": "within the floor",
}
HEALTH = {"verdict": "healthy", "sentence": "all is well", "since_images_seen": 8, "measurements_in_a_row": 3}
HOSTILE = ["", "null", "[]", "3", '"x"', "[" * 9999, "{" * 9999, b"\xff", "\0"]


@pytest.mark.parametrize("declaration", [EvaluationFile, FinishedRows, HealthFile, Made, ManifestFile])
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_anything_else_is_refused(declaration, text, tmp_path):
    assert parsed(declaration, text) is None
    (tmp_path / "f.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"f\.json: is no thing of Mirage's \(.{5,300}\)$"):
        read_declared(declaration, tmp_path / "f.json", "thing")


def test_what_mirage_writes_is_read():
    assert parsed(EvaluationFile, json.dumps({"scores": [ROW, WHOLE, {**ROW, "value": None, "refused": "few"}]}))
    assert parsed(FinishedRows, json.dumps({"key": "k", "rows": [WHOLE]}))
    assert parsed(HealthFile, json.dumps({**HEALTH, "signals": {"gap": 1.5, "alpha": None}, "thing": 1}))
    assert parsed(Made, json.dumps({"index": 3, "sha256": "0f" * 32}))
    assert parsed(ManifestFile, json.dumps({"count": 3, "seed": 1}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value": "1"}, "value: input should be a valid number"),
        ({"value": True}, "value: input should be a valid number"),
        ({"better": "bigger"}, "better: input should be 'lower', 'higher' or 'as real'"),
        ({"fingerprint": 3}, "fingerprint: input should be an object"),
        ({"name": None}, "name: input should be a valid string"),
        ({"warnings": "x"}, "warnings: input should be a valid array"),
        ({"replicates": [1, None]}, "replicates.1: input should be a valid number"),
        ({"low": 1.0}, "it lacks at_floor_size, floor"),
    ],
)
def test_each_part_of_a_score_is_named(change, said, tmp_path):
    (tmp_path / "scores.json").write_text(json.dumps({"scores": [{**ROW, **change}]}))
    with pytest.raises(ConfigError) as error:
        read_declared(EvaluationFile, tmp_path / "scores.json", "evaluation")
    assert said in str(error.value) and "scores.0" in str(error.value)
    assert parsed(ScoreRow, json.dumps({**ROW, **change})) is None


def test_an_index_that_no_folder_has_is_refused():
    for index in (-1, 2**63, 1.5, "3"):
        assert parsed(Made, json.dumps({"index": index, "sha256": "0f" * 32})) is None
    assert parsed(Made, json.dumps({"index": 1, "sha256": "=cmd()"})) is None
