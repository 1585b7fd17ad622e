"""The privacy suite, what it says, and exports that require it."""

import csv
import html
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import figures_drawn, tiny_config
from test_evaluation_parts import Mean, Numbers

from datamodules.phantom_drawings import chest_xray
from experiments import export as verb
from experiments.evaluate import main
from experiments.evaluation import privacy
from experiments.measuring.image_sets import ImageSet
from experiments.measuring.scoring import Sets
from experiments.measuring.settings import build_tools, load_suite
from experiments.measuring.vectors import VectorCache
from experiments.publishing.exporting import export
from experiments.record.loading import load_run
from experiments.running.training import train
from lightning_modules.metrics.memorisation import Copies, Copy
from lightning_modules.metrics.re_identification import Finding, Interval, Match

TESTS = list(privacy.LIMITS)
FEW = ["extractors.efficientnet_lite0=null", "images=120", "replicates=10"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tiny_config("dcgan", tmp_path_factory.mktemp("run"), "data.count=360"))


@pytest.fixture(scope="module")
def evaluated(run):
    """The suite without the learned features, which take seconds."""
    with figures_drawn():
        assert main([str(run), "suite=privacy", *FEW]) == 0
    (folder,) = run.glob("evaluation/privacy-*")
    return folder


def finding(p=0.5, planted=0.0001, low=0.9, matches=()):
    return Finding(
        area=Interval(0.95, low, 0.99),
        recognised=0.9,
        nearest=Interval(0.5, 0.45, 0.55),
        above=None,
        to_train=len(matches),
        by_chance=2.0,
        matches=list(matches),
        p_values=torch.full((4,), p).double(),
        planted=torch.full((50, 4), planted).double(),
        images=100,
        patients=(60, 40),
    )


def row(name, at, better):
    ends = {"floor": 0.5, "floor_low": 0.4, "floor_high": 0.6, "beyond_floor": [-0.05, 0.05] * 20, "freedom": 39}
    return {"name": name, "score": name, "value": at, "at_floor_size": at, "better": better, "low": 0.0, **ends}


ROWS = [row("membership_auc_x", 0.5, "lower"), row("authenticity_x", 0.5, "as real")]
ROWS += [row("neighbour_distance_ratio_x", 0.5, "as real")]


def answers(rows=ROWS, findings=None, near=(), generated=100, held_out=99):
    sets = Sets(*(Numbers(np.linspace(-1, 1, n)) for n in (50, generated, 200, held_out)))
    said = privacy.verdicts(rows, {"x": finding()} if findings is None else findings, near, sets, Copies())
    assert [verdict.test for verdict in said] == TESTS and all(v.sentence.endswith(".") for v in said)
    return {verdict.test: verdict.answer for verdict in said}


# Verdicts -------------------------------------------------------------------------------------------------------------


def test_chance_of_copies_is_that_of_exchangeable_distances():
    random, score = np.random.default_rng(0), Copies(0.05)
    distances = random.random((20_000, 60 + 99))  # of 60 generated and 99 held-out images
    threshold = np.sort(distances[:, 60:], axis=1)[:, 5 - 1, None]  # 0.05 * 100
    counts = (distances[:, :60] < threshold).sum(axis=1)
    for count in (1, 4, 8):
        assert privacy.chance_of_copies(count, 60, 99, score) == pytest.approx((counts >= count).mean(), abs=0.012)
    assert privacy.chance_of_copies(0, 60, 99, score) == 1.0


def test_a_clean_generator_is_called_clean():
    assert answers() == dict.fromkeys(TESTS, "clean")
    better = [row("membership_auc_x", 0.2, "lower"), row("authenticity_x", 0.9, "as real"), ROWS[2]]
    assert answers(better) == dict.fromkeys(TESTS, "clean")  # the side that leaks nothing


@pytest.mark.parametrize(
    ("test", "changed"),
    [
        ("membership", {"rows": [row("membership_auc_x", 0.7, "lower"), *ROWS[1:]]}),
        ("authenticity", {"rows": [ROWS[0], row("authenticity_x", 0.3, "as real"), ROWS[2]]}),
        ("neighbour distance", {"rows": [*ROWS[:2], row("neighbour_distance_ratio_x", 0.3, "as real")]}),
        ("copies", {"near": [Copy(i, i, 0.1, 0.2) for i in range(12)]}),
        ("copies", {"near": [Copy(0, 0, 0.0, 0.2)]}),  # one, but equal
        ("re-identification", {"findings": {"x": finding(), "y": finding(p=0.0005)}}),
    ],
)
def test_each_leak_is_named_by_its_test(test, changed):
    assert answers(**changed) == {**dict.fromkeys(TESTS, "clean"), test: "leak"}


@pytest.mark.parametrize(
    "findings",
    [
        {},
        {"x": "needs patients with several images"},
        {"x": finding(low=0.45)},  # cannot tell patients apart
        {"x": finding(planted=0.2)},  # would not see a leak
    ],
)
def test_what_cannot_see_gives_no_answer(findings):
    assert answers(findings=findings)["re-identification"] == "no answer"
    assert answers(findings={**findings, "y": finding()})["re-identification"] == "clean"  # one that sees is enough


@pytest.mark.parametrize(("share", "answer"), [(0.98, "clean"), (0.7, "leak")])
def test_a_floor_of_real_images_that_are_all_authentic_is_not_certain(share, answer):
    """By the rule of three the share of 99 patients may be off by 3 %."""
    ends = {"floor": 1.0, "floor_low": 1.0, "floor_high": 1.0, "beyond_floor": [share - 1.005, share - 0.995] * 20}
    authentic = {**row("authenticity_x", share, "as real"), **ends}
    assert answers([ROWS[0], authentic, ROWS[2]])["authenticity"] == answer


def test_scores_without_floor_give_no_answer():
    found = answers([{"name": "authenticity_x", "value": None, "refused": "too few"}], near=None)
    assert found == {**dict.fromkeys(TESTS, "no answer"), "re-identification": "clean"}


def test_a_refused_score_is_not_called_left_out_and_a_reason_is_given_once():
    names = ("membership_x", "membership_y")  # a refused score has the suite's name of it
    rows = [{"name": name, "score": "membership", "value": None, "refused": "too few"} for name in names]
    sets = Sets(*(Numbers(np.linspace(-1, 1, 50)) for _ in range(4)))
    said = {one.test: one.sentence for one in privacy.verdicts(rows, {}, None, sets, None)}
    assert said["membership"] == "No answer: too few."
    assert said["authenticity"] == "No answer: the suite leaves it out."


# The suite ------------------------------------------------------------------------------------------------------------


def test_the_suite_says_what_each_test_found(evaluated):
    said = json.loads((evaluated / "scores.json").read_text())
    assert [one["test"] for one in said["privacy"]] == TESTS
    of_patients = said["re_identification"]["random_conv"]
    assert of_patients["area"]["value"] > 0.9  # phantoms are easily known again
    assert of_patients["fingerprint"]["metric"] == "ReIdentification" and of_patients["fingerprint"]["train"]
    page = (evaluated / "report.html").read_text()
    assert "<h2>Privacy</h2>" in page and all(
        html.escape(one["sentence"], quote=False) in page for one in said["privacy"]
    )
    assert all(
        "kidney_ct-" not in path.read_text() and "kidney-0" not in path.read_text() for path in evaluated.iterdir()
    )


def test_matches_are_listed_by_pseudonyms(tmp_path, monkeypatch):
    from datamodules.files.pseudonyms import Pseudonyms

    monkeypatch.setenv("MIRAGE_PRIVATE", str(tmp_path / "private"))
    sets = Sets(*(Numbers([0.0, 0.1, 0.2]) for _ in range(4)))
    privacy.write_matches(
        tmp_path / "m.csv",
        {"x": finding(matches=[Match(2, 1, 0.9, 0.5)])},
        sets,
        Pseudonyms("mirage", tmp_path / "runs"),
    )
    (listed,) = csv.DictReader((tmp_path / "m.csv").open())
    assert listed["generated"] == "2" and listed["training image (pseudonym)"].startswith("p-")
    assert (listed["score"], listed["threshold"], listed["extractor"]) == ("0.9", "0.5", "x")


def test_sets_without_several_films_of_a_patient_are_refused_before_anything_is_disturbed(tmp_path):
    class Tools:
        re_identification, extractors = privacy.ReIdentification(), {"mean": Mean()}

    sets = Sets(*(Numbers(np.linspace(-1, 1, 60) * scale) for scale in (1, 0.9, 0.8, 0.7)))
    said = privacy.re_identify(sets, VectorCache(tmp_path), Tools())
    assert "re-identification needs patients with several images: 0 of 60 training patients" in said["mean"]
    assert Tools.extractors["mean"].seen == 180  # not the 60 disturbed ones
    assert (
        "needs training images"
        in privacy.re_identify(Sets(sets.real, sets.generated, None, None), VectorCache(tmp_path), Tools())["mean"]
    )


# Exports --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_run(run, tmp_path):
    shutil.copytree(run, tmp_path / "named" / "run", ignore=shutil.ignore_patterns("evaluation"))
    return tmp_path / "named" / "run"


def put(run, name="privacy-000000000096-abcdef", suite="privacy", weights=None, of=None, **changed):
    given = [{"test": t, "answer": changed.get(t, "clean"), "sentence": f"Of {t}.", "limits": "L."} for t in TESTS]
    said = {"suite": suite, "weights_sha256": weights or load_run(run).weights_sha256, "privacy": given, "scores": []}
    said |= of or {}
    (run / "evaluation" / name).mkdir(parents=True)
    (run / "evaluation" / name / "scores.json").write_text(json.dumps(said))


def exported(run, capsys):
    code = verb.main([str(run), "--no-onnx", "--require-privacy", "--output", str(run / "out")])
    return code, capsys.readouterr().err


def test_export_of_a_clean_generator_carries_the_result(own_run, capsys):
    put(own_run)
    assert exported(own_run, capsys)[0] == 0
    card = (own_run / "out" / "README.md").read_text()
    assert "## Privacy" in card and "| copies | clean | Of copies. | L. |" in card and str(own_run) not in card
    assert "Not assessed" not in card


def test_export_is_refused_without_an_evaluation(own_run, capsys):
    code, said = exported(own_run, capsys)
    assert code == 2 and "there is no finished privacy evaluation" in said
    assert f"run: python -m experiments.evaluate {own_run} suite=privacy" in said
    put(own_run, suite="standard")
    assert exported(own_run, capsys)[0] == 2
    assert not (own_run / "out").exists()
    assert "Not assessed" in (export(own_run, own_run / "out", with_onnx=False) / "README.md").read_text()


def test_export_is_refused_for_other_weights(own_run, capsys):
    put(own_run, weights="0" * 64)
    code, said = exported(own_run, capsys)
    assert code == 2 and "are of other weights" in said


@pytest.mark.parametrize(
    ("of", "why"),
    [
        ({"real": {"data_set": "folder"}}, "it was against a folder"),
        ({"generated": {"truncation": 0.1}}, "its images have truncation=0.1"),
    ],
)
def test_export_is_refused_where_other_images_were_looked_at(own_run, capsys, of, why):
    put(own_run, of=of)
    code, said = exported(own_run, capsys)
    assert code == 2 and f"--require-privacy: privacy-000000000096-abcdef: {why}" in said and "run again: " in said
    put(own_run, name="privacy-later")
    assert exported(own_run, capsys)[0] == 0
    assert f"privacy-000000000096-abcdef, of these weights, but {why}" in (own_run / "out" / "README.md").read_text()


@pytest.mark.parametrize("answer", ["leak", "no answer", None])
def test_export_is_refused_unless_every_test_is_clean(own_run, capsys, answer):
    put(own_run, **{"re-identification": answer})
    code, said = exported(own_run, capsys)
    assert code == 2 and "privacy-000000000096-abcdef: re-identification: Of re-identification." in said
    assert ("run again: python -m experiments.evaluate" in said) == (answer != "leak")
    put(own_run, name="privacy-later")  # a second, clean one answers the question, but does not wash a leak off
    assert exported(own_run, capsys)[0] == (2 if answer == "leak" else 0)


def test_a_damaged_evaluation_is_none(own_run, capsys):
    put(own_run)
    path = next(own_run.glob("evaluation/*/scores.json"))
    said = json.loads(path.read_text())
    for privacy_ in (None, [], "clean", said["privacy"][1:]):
        path.write_text(json.dumps({**said, "privacy": privacy_}))
        code, text = exported(own_run, capsys)
        assert code == 2 and "copies: No answer: the evaluation does not hold this test." in text


def test_the_evaluation_of_a_run_decides(run, evaluated, capsys):
    code, said = exported(run, capsys)
    clean = all(one["answer"] == "clean" for one in json.loads((evaluated / "scores.json").read_text())["privacy"])
    assert code == (0 if clean else 2) and (clean or evaluated.name in said)


# Planted --------------------------------------------------------------------------------------------------------------

FILMS, PATIENTS, HELD_OUT, IMAGES, LEAKED = 4, 150, 70, 600, 30


class Drawn(ImageSet):
    """Chest phantoms of four films each, of which training and held-out images are the first three."""

    def __init__(self, what, indices, changed=0, look=lambda image: image):
        self.what, self.indices, self.changed, self.look, self.size = what, indices, changed, look, (32, 32)
        self.names = [f"{what} {i}" for i in indices]
        self.groups = [str(i // FILMS) for i in indices]

    def identity(self):
        return {"what": self.what, "indices": self.indices}

    def read(self, start, stop):
        drawn = [torch.from_numpy(chest_xray.draw(i, 32, 32, FILMS))[None] * 2 - 1 for i in self.indices[start:stop]]
        looks = [self.look(image) if i < self.changed else image for i, image in enumerate(drawn, start)]
        return torch.stack(looks).clamp(-1.0, 1.0)


def noisy(image):
    return image + 0.05 * torch.randn(
        image.shape, generator=torch.Generator().manual_seed(int(image.sum() * 1e4) % 2**31)
    )


@pytest.mark.slow
def test_one_leaked_patient_in_twenty_images_is_found_and_a_perfect_generator_is_not_accused(tmp_path):
    """In a film that was never a training image, and in a training image with noise."""
    train = Drawn("train", [FILMS * p + f for p in range(PATIENTS) for f in range(3)])
    held_out = Drawn("held out", [FILMS * (PATIENTS + p) + f for p in range(HELD_OUT) for f in range(3)])
    strangers = [FILMS * (1000 + i) for i in range(IMAGES)]
    new = [FILMS * p + 3 for p in range(LEAKED)] + strangers[LEAKED:]
    same = [FILMS * p for p in range(LEAKED)] + strangers[LEAKED:]
    tools = build_tools(load_suite("privacy", ["extractors.efficientnet_lite0=null"]))
    tools.load("cpu")
    found = {}
    for generated in (Drawn("perfect", strangers), Drawn("new film", new), Drawn("noisy", same, LEAKED, noisy)):
        sets, cache = Sets(train, generated, train, held_out), VectorCache(tmp_path)
        findings = privacy.re_identify(sets, cache, tools)
        verdict = privacy.verdicts([], findings, None, sets, None)[1]
        found[generated.what] = verdict.answer
        if generated.what != "perfect":
            named = {match.generated: train.groups[match.train] for match in findings["random_conv"].matches}
            right = sum(named.get(i) == str(i) for i in range(LEAKED))
            assert right >= 0.8 * LEAKED, verdict.sentence
    assert found == {"perfect": "clean", "new film": "leak", "noisy": "leak"}
