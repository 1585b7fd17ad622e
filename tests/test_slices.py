"""Slices: who belongs to them, every score within them, and where a generator is worse than elsewhere."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from datamodules.chestxray14 import ChestXray14
from datamodules.mammography import Mammography
from datamodules.phantoms import Phantoms
from experiments.configuration.errors import ConfigError
from experiments.evaluate import main
from experiments.evaluation import assignment
from experiments.evaluation.assignment import assign, cross_fitted, number_of
from experiments.evaluation.attributes import MOST, Members, members, problems_of
from experiments.evaluation.comparison import holm
from experiments.evaluation.slices import SliceScorer, check_slices, chosen
from experiments.evaluation.slices_found import Slices, slice_lines
from experiments.evaluation.slices_parts import Part, PartVectors
from experiments.measuring.image_sets import ImageSet
from experiments.measuring.scoring import Sets
from experiments.measuring.settings import Suite, Tools
from experiments.measuring.vectors import VectorCache
from lightning_modules.metrics.features import FeatureExtractor
from lightning_modules.metrics.frechet import Frechet, frechet_distance_of
from lightning_modules.metrics.memorisation import NeighbourDistanceRatio
from lightning_modules.metrics.precision_recall import DensityCoverage, PrecisionRecall, density_coverage, reached
from lightning_modules.schedules import ConstantSchedule

SIZE = 6  # numbers of a point
SHARES = (0.5, 0.3, 0.2)  # of the slices A, B and C
CENTRES = np.array([(3, 0), (0, 3), (-3, -3)])


class Flat(FeatureExtractor):
    score_name, dimensions = "flat", SIZE

    def identity(self):
        return {"extractor": "flat"}

    def forward(self, images):
        return images.flatten(1)

    features = forward


class Points(ImageSet):
    """Points in place of images, each with its slice."""

    def __init__(self, values, slices, tag, labelled=True):
        self.values = torch.as_tensor(np.asarray(values), dtype=torch.float32)
        self.names = self.groups = [f"{tag} {i}" for i in range(len(values))]
        self.about = [{"finding": one} for one in slices] if labelled else ()
        self.what, self.size, self.tag = tag, (1, SIZE), tag

    def identity(self):
        return {"points": self.tag}

    def read(self, start, stop):
        return self.values[start:stop].reshape(-1, 1, 1, SIZE)


def points(seed, count, tag, labelled=True, change=None, missing=""):
    """Points of three slices; ``change`` is done to those of one, ``missing`` is left out."""
    random = np.random.default_rng(seed)
    which = random.choice(3, count, p=SHARES)
    values = random.normal(0, 1, (count, SIZE))
    values[:, :2] += CENTRES[which]
    slices = np.array(list("ABC"))[which]
    if change is not None:
        name, function = change
        values[slices == name] = function(values[slices == name])
    kept = slices != missing
    return Points(values[kept], slices[kept].tolist(), f"{tag} {seed}", labelled)


def collapsed(values):
    return values[np.arange(len(values)) % 3]


def blurred(values):
    return values.mean(axis=0) + 0.5 * (values - values.mean(axis=0))


INSTRUMENTS = {"frechet": Frechet(), "neighbours": PrecisionRecall(), "coverage": DensityCoverage()}


def scorer(tmp_path, sets, instruments=INSTRUMENTS, by="finding", replicates=12):
    suite = Suite({}, None, replicates, by=by)
    tools = Tools({"flat": Flat()}, instruments)
    return SliceScorer(sets, VectorCache(tmp_path / "vectors"), tools, suite, tmp_path / "record.jsonl")


def found_with(tmp_path, generated, count=400, seed=1, **options):
    return scorer(tmp_path, Sets(points(seed, count, "real"), generated, None, None), **options).measure()


def named(slices):
    return {(part.name, row["score"]) for part, row in slices.worse}


# Who belongs to a slice -----------------------------------------------------------------------------------------------


def test_ages_fall_into_bands_and_several_findings_into_several_slices():
    about = [{"age": age} for age in ("0", "19", "20", "058Y", "79.5", "80", "", "104")]
    of = members([*about, {}], "age")
    assert {name: np.flatnonzero(one).tolist() for name, one in of.of.items()} == {
        "under 20": [0, 1],
        "20 to 39": [2],
        "40 to 59": [3],
        "60 to 79": [4],
        "80 and older": [5, 7],
    }
    assert np.flatnonzero(~of.known).tolist() == [6, 8]
    found = members([{"finding": text} for text in ("Mass|Edema", "Edema", "", "No Finding")], "finding")
    assert list(found.of) == ["Edema", "Mass", "No Finding"]
    assert found.of["Edema"].tolist() == [True, True, False, False]
    assert found.rest("Mass").tolist() == [False, True, False, True]  # of the third nothing is known
    with pytest.raises(ConfigError, match="by=age: 'old' is no age in years"):
        members([{"age": "old"}], "age")


def test_attributes_that_make_no_slices_are_refused():
    about = [{"sex": "F", "view": "PA", "name": str(i), "age": ""} for i in range(MOST + 1)]
    said = problems_of(["sex", "finding", "name", "age"], [*about, {"sex": "M"}], "real images", " in x.csv")
    assert said == [
        "by=finding: real images are not told apart by it in x.csv (known of them is name, sex, view)",
        f"by=name: has {MOST + 1} values, more than {MOST}: it names images, not slices",
        "by=age: real images are not told apart by it in x.csv (known of them is name, sex, view)",
    ]
    assert problems_of(["view"], about, "real images", "") == ["by=view: all real images of which it is known are PA"]


def test_data_sets_tell_their_images_apart_and_nothing_else_changes(chest_root, tmp_path, monkeypatch):
    schedule = ConstantSchedule((32, 32), 4, 8)
    films = ChestXray14(schedule, 0, str(chest_root), str(tmp_path), min_present=0.0)
    records = films.records()
    assert {record.about["sex"] for record in records} <= {"F", "M"}
    assert all(films.attributes(record)["finding"] for record in records)
    assert all(0 <= int(record.about["age"]) < 110 for record in records if "age" in record.about)
    breasts = Phantoms(schedule, 0, str(tmp_path), "mammogram", 8)
    assert breasts.attributes(breasts.records()[3]) | {"finding": ""} == {"view": "MLO", "side": "RIGHT", "finding": ""}
    breasts.setup()
    before = breasts.fingerprint("train"), breasts._caches[32, 32].directory
    stripped = [replace(record, about={}) for record in breasts.records()]
    monkeypatch.setattr(Phantoms, "records", lambda self: stripped)
    bare = Phantoms(schedule, 0, str(tmp_path), "mammogram", 8)
    bare.setup()
    assert (bare.fingerprint("train"), bare._caches[32, 32].directory) == before


def test_mammograms_are_told_apart_by_labels_and_by_the_table(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f"{i}.png")
    table = tmp_path / "list.csv"
    table.write_text("file,patient,view,side,Age,density\n0.png,a,CC,L,51,b\n1.png,b,MLO,,,c\n2.png,c,,R,70,\n")
    data = Mammography(ConstantSchedule((8, 8), 1, 8), 0, str(tmp_path), str(tmp_path), "folder", csv=str(table))
    assert [data.attributes(record) for record in data.records()] == [
        {"age": "51", "density": "b", "view": "CC", "side": "LEFT"},
        {"density": "c", "view": "MLO"},
        {"age": "70", "side": "RIGHT"},
    ]


# Which slice an image without labels belongs to -----------------------------------------------------------------------


def test_images_are_judged_by_the_ridge_regression_on_other_folds():
    from sklearn.linear_model import Ridge

    real, other = points(0, 120, "r"), points(1, 40, "g")
    true = members(real.about, "finding")
    target = np.stack(list(true.of.values()), axis=1)
    known = np.arange(120) % 7 > 0
    judged = cross_fitted((real.values, real.groups), target, known, [(other.values, other.groups)])
    mean, deviation = real.values.mean(dim=0), real.values.std(dim=0)
    of_real, of_other = (np.array([number_of(g) % assignment.FOLDS for g in one.groups]) for one in (real, other))
    for fold in range(assignment.FOLDS):
        fitted = known & (of_real != fold)
        x = ((real.values - mean) / deviation).numpy()[fitted].astype(float)
        ridge = Ridge(alpha=assignment.RIDGE * fitted.sum(), solver="cholesky").fit(x, target[fitted].astype(float))
        for scores, images, of in zip(judged, (real, other), (of_real, of_other), strict=True):
            expected = ridge.predict(((images.values - mean) / deviation).numpy()[of == fold].astype(float))
            np.testing.assert_allclose(scores[of == fold], expected, atol=1e-5)


def test_as_many_images_are_assigned_to_a_slice_as_belong_to_it_and_agreement_is_cohens():
    from sklearn.metrics import cohen_kappa_score, roc_auc_score

    real, other = points(0, 300, "r"), points(1, 200, "g")
    true = members(real.about, "finding")
    found = assign(true, (real.values, real.groups), [(other.values, other.groups)])
    ours, theirs = found.members
    for name, belongs in true.of.items():
        assert ours.of[name].sum() == belongs.sum()
        assert found.agreement[name] == pytest.approx(cohen_kappa_score(belongs, ours.of[name]))
        assert found.agreement[name] > 0.8 and found.auc[name] > 0.95
        right = members(other.about, "finding", [name]).of[name]
        assert (theirs.of[name] == right).mean() > 0.9
    scores = cross_fitted((real.values, real.groups), true.of["A"][:, None], true.known, [])[0][:, 0]
    assert found.auc["A"] == pytest.approx(roc_auc_score(true.of["A"], scores), abs=1e-6)
    blind = Members({"x": np.arange(300) % 2 == 0}, np.ones(300, bool))
    assert abs(assign(blind, (real.values, real.groups), []).agreement["x"]) < 0.2


# Scores ---------------------------------------------------------------------------------------------------------------


def test_a_slices_score_is_that_of_its_images_beside_as_many_others(tmp_path):
    real, generated = points(1, 300, "real"), points(2, 300, "generated")
    found = scorer(tmp_path, Sets(real, generated, None, None), {"frechet": Frechet()}).measure()
    part = next(part for part in found.found if part.name == "B")
    row = next(row for row in part.rows if row["score"] == "frechet")
    ours, theirs = real.values[part.real], generated.values[part.generated][: len(part.real)]
    taken = chosen(part.generated, generated.groups, len(part.real))
    assert len(taken) == len(theirs) and set(taken) <= set(part.generated)
    assert row["value"] == pytest.approx(frechet_distance_of(ours, generated.values[taken]))
    assert row["floor_low"] <= row["floor"] <= row["floor_high"] and row["low"] < row["value"] < row["high"]
    elsewhere, floor = row["elsewhere"]
    assert row["difference"] == pytest.approx(row["at_floor_size"] - row["floor"] - elsewhere + floor)
    share = next(row for row in part.rows if row["score"] == "share")
    assert share["value"] == len(part.generated) / 300
    assert share["difference"] == pytest.approx((len(part.generated) - len(part.real)) / 300)
    near = next(row for row in part.rows if row["score"] == "reached")
    assert near["value"] == pytest.approx(float(reached(real.values, generated.values)[part.real].double().mean()))
    assert float(reached(real.values, generated.values).double().mean()) == pytest.approx(
        density_coverage(real.values, generated.values)[1]
    )


def test_slices_of_one_size_are_taken_by_whole_groups():
    groups = [f"patient {i // 3}" for i in range(300)]
    rows = np.arange(0, 300, 1)
    taken = chosen(rows, groups, 100)
    assert len(taken) == 100 and (np.diff(taken) > 0).all()
    counts = np.unique([groups[i] for i in taken], return_counts=True)[1]
    assert sorted(counts.tolist())[:1] == [1] and (counts == 3).sum() == 33  # the last one in part
    assert chosen(rows, groups, 300) is rows


def test_vectors_of_parts_are_those_of_the_whole(tmp_path, monkeypatch):
    whole, cache = points(0, 50, "whole"), VectorCache(tmp_path)
    cache.vectors(whole, Flat())
    parts = PartVectors(cache, Tools({"flat": Flat()}, {"frechet": Frechet()}))
    monkeypatch.setattr(VectorCache, "_compute", None)  # would fail
    part = Part(whole, np.array([3, 7, 30]))
    assert torch.equal(parts.vectors(part, Flat()), whole.values[[3, 7, 30]])
    assert torch.equal(part.read(1, 3).flatten(1), whole.values[[7, 30]])
    assert part.identity() != Part(whole, np.array([3, 7, 31])).identity()
    few = Frechet()
    few.at_most = 10  # of which vectors are computed
    assert len(PartVectors(cache, Tools({"flat": Flat()}, {"few": few})).vectors(part, Flat())) == 2


def test_memorisation_is_measured_against_all_training_images(tmp_path):
    train, held_out = points(5, 200, "train"), points(6, 120, "held-out")
    copies = Points(train.values[:150] + 0.01, [one["finding"] for one in train.about[:150]], "copies")
    fresh = points(7, 150, "fresh")
    for generated, low, high in ((copies, 0.0, 0.05), (fresh, 0.7, 1.4)):
        sets = Sets(points(1, 200, "real"), generated, train, held_out)
        found = scorer(tmp_path, sets, {"ratio": NeighbourDistanceRatio()}).measure()
        values = [row["value"] for part in found.found for row in part.rows if row["score"] == "ratio"]
        assert len(values) == 3 and all(low <= value <= high for value in values)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_slice_that_is_collapsed_is_named_and_no_other(tmp_path, labelled):
    found = found_with(tmp_path, points(2, 400, "generated", labelled, ("B", collapsed)))
    assert {name for name, _ in named(found)} == {"B"} and ("B", "coverage") in named(found)
    assert any(line.startswith("worse than elsewhere: finding B: ") for line in slice_lines(found))
    assert ("labels" if labelled else "classifier") in found.how


def test_a_slice_that_is_missing_is_named_by_its_share_and_by_what_is_not_reached(tmp_path):
    found = found_with(tmp_path, points(2, 400, "generated", False, missing="C"))
    assert {("C", "share"), ("C", "reached")} <= named(found) and {name for name, _ in named(found)} == {"C"}
    line = next(line for line in slice_lines(found) if "of the generated images" in line)
    assert line.startswith("worse than elsewhere: finding C: 0.") and "% of the real ones" in line


def test_a_perfect_generator_is_not_accused(tmp_path):
    found = found_with(tmp_path, points(2, 400, "generated"))
    assert not found.worse and found.tests == 3 * 7  # share, reached, Frechet, precision, recall, density, coverage
    assert slice_lines(found) == ["no slice is worse than elsewhere by more than chance (21 differences tested)"]


@pytest.mark.slow
def test_perfect_generators_are_accused_as_seldom_as_promised(tmp_path):
    few = {"frechet": Frechet(), "coverage": DensityCoverage()}
    accused = [
        bool(
            found_with(tmp_path / str(s), points(s + 100, 250, "generated", s % 2 == 0), 250, s, instruments=few).worse
        )
        for s in range(16)
    ]
    assert sum(accused) <= 3  # at 5 % more have a probability of 0.01


def test_finished_slices_are_not_measured_again(tmp_path, monkeypatch):
    first = found_with(tmp_path, points(2, 200, "generated"), 200)
    monkeypatch.setattr(Frechet, "measure", None)
    monkeypatch.setattr("experiments.evaluation.slices.reached", None)
    again = found_with(tmp_path, points(2, 200, "generated"), 200)
    assert [part.rows for part in again.found] == [part.rows for part in first.found]


def test_few_images_and_slices_that_are_not_told_apart_are_refused(tmp_path):
    real, generated = points(1, 200, "real"), points(2, 200, "generated", False)
    random = np.random.default_rng(0)
    for i, one in enumerate(real.about):
        one |= {"coin": "heads" if random.random() < 0.5 else "tails", "rare": "yes" if i < 5 else "no"}
    found = scorer(tmp_path, Sets(real, generated, None, None), {"frechet": Frechet()}, ("coin", "rare")).measure()
    by_name = {part.name: part for part in found.found}
    assert "agrees with the real images' labels by a kappa of" in by_name["heads"].refused
    assert [row["score"] for row in by_name["heads"].rows] == ["reached"]  # needs no slice of generated images
    assert by_name["yes"].refused == "5 real images of 5 groups are too few: halves need 8 groups" or "kappa" in (
        by_name["yes"].refused
    )


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.7, 0.9]) == [1.0, 1.0]


def test_what_slices_cannot_be_made_by_is_refused_at_once():
    real, generated = points(1, 20, "real"), points(2, 20, "generated")
    suite = Suite({}, None, 10, by=("finding", "sex"))
    with pytest.raises(ConfigError, match=r"by=sex: real images are not told apart by it \(known of them is finding\)"):
        check_slices(suite, Tools({"flat": Flat()}, {}), Sets(real, generated, None, None))
    with pytest.raises(ConfigError, match="add an extractor"):
        check_slices(replace(suite, by="finding"), Tools({}, {}), Sets(real, generated, None, None))
    real.about = ()
    with pytest.raises(ConfigError, match="groups=FILE tells, in columns beside file and group"):
        check_slices(replace(suite, by="finding"), Tools({"flat": Flat()}, {}), Sets(real, generated, None, None))
    with pytest.raises(ValueError, match="name the columns with by="):
        Suite({}, None, 10, generated_labels="x.csv")
    assert Suite({}, None, 10, by=("Sex", "sex")).attributes == ("sex",)  # as columns are taken


def test_labels_in_other_words_than_the_real_images_are_refused_or_said():
    real, suite, tools = points(1, 60, "real"), Suite({}, None, 10, by="finding"), Tools({"flat": Flat()}, {})

    def checked(change):
        generated = points(2, 60, "generated")
        generated.about = [{"finding": change(one["finding"])} for one in generated.about]
        return check_slices(suite, tools, Sets(real, generated, None, None))

    with pytest.raises(ConfigError, match=r"no generated image has a value of the real ones \(real images say A, B"):
        checked(str.lower)
    (said,) = checked(lambda name: "D" if name == "C" else name)
    assert said.startswith("by=finding: values that no real image has") and "D (" in said and said.endswith(" images)")
    assert checked(str) == []


def test_a_wrong_age_is_refused_with_whose_it_is():
    real, generated, held_out = points(1, 20, "real"), points(2, 20, "generated"), points(3, 20, "held-out")
    for images in (real, generated, held_out):
        images.about = [{"age": str(30 + 2 * i)} for i in range(20)]
    suite, tools = Suite({}, None, 10, by="age", generated_labels="made.csv"), Tools({"flat": Flat()}, {})
    for images, whose in ((held_out, "held-out images"), (generated, "made.csv"), (real, "real images")):
        images.about[3] = {"age": "nan"}
        with pytest.raises(ConfigError, match=rf"by=age: 'nan' is no age in years.*{whose}"):
            check_slices(suite, tools, Sets(real, generated, None, held_out))


def test_nothing_tested_is_not_called_nothing_worse():
    untested = slice_lines(Slices([], "", 0))
    assert untested == ["whether a slice is worse than elsewhere could not be told: no difference could be tested"]


# Through the command --------------------------------------------------------------------------------------------------

SUITE = """
images: 120
replicates: 10
extractors: {random_conv: {_target_: lightning_modules.metrics.features.RandomConvNet}}
scores:
  frechet: {_target_: lightning_modules.metrics.frechet.Frechet}
  classifier: {_target_: lightning_modules.metrics.two_sample.ClassifierAUC}
"""


def write_pictures(folder, count, seed, noisy="", level=0):
    """Dark pictures of "F" and bright ones of "M"; those of one sex may be noisy."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        sex = "FM"[i % 2]
        picture = np.kron(random.uniform(0.1, 0.4, (4, 4)), np.ones((8, 8))) + 0.4 * (sex == "M")
        if sex == noisy:
            picture = np.clip(picture + random.normal(0, 0.15, picture.shape), 0, 1)
        Image.fromarray((picture * 255).astype(np.uint8)).save(folder / f"{seed}_{i:03d}.png", compress_level=level)
        rows.append(f"{seed}_{i:03d}.png,{seed}_{i},{sex}")
    folder.with_suffix(".csv").write_text("file,group,sex\n" + "\n".join(rows) + "\n")
    return folder


@pytest.fixture
def top(tmp_path):
    (tmp_path / "small.yaml").write_text(SUITE)
    write_pictures(tmp_path / "real", 48, 0)
    return tmp_path


def evaluated(top, generated, *overrides):
    arguments = [str(generated), f"suite={top / 'small.yaml'}", f"against={top / 'real'}", f"output={top / 'out'}"]
    return main([*arguments, f"groups={top / 'real.csv'}", *overrides])


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("labelled", [True, False])
def test_the_noisy_slice_of_a_folder_is_named_on_terminal_page_and_table(top, capsys, labelled):
    generated = write_pictures(top / "generated", 48, 1, noisy="M")
    labels = [f"generated_labels={top / 'generated.csv'}"] if labelled else []
    one = "scores.classifier=null"
    assert evaluated(top, generated, "by=sex", one, *labels) == 0
    said = capsys.readouterr().out
    assert "worse than elsewhere: sex M: frechet random conv" in said and "sex F: " not in said
    assert str(top / "out" / "slices.html") in said
    found = list(csv.DictReader((top / "out" / "slices.csv").open()))
    assert {(row["slice"], row["name"]) for row in found if row["worse"] == "True"} >= {("M", "frechet_random_conv")}
    assert {row["by"] for row in found} == {"sex"} and {row["slice"] for row in found} == {"F", "M"}
    page = (top / "out" / "slices.html").read_text()
    assert "sex M: frechet random conv" in page and page.count("data:image/png") == 4 and "http" not in page
    assert ("by their labels" if labelled else "by a classifier") in page
    assert "slices.html" in (top / "out" / "report.html").read_text()
    assert json.loads((top / "out" / "scores.json").read_text())["slices"]
    for path in (top / "out").iterdir():
        assert "0_001.png" not in path.read_text(), path.name
    assert evaluated(top, generated, one) == 0  # without slices none are left
    assert not (top / "out" / "slices.html").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["by=view"], r"by=view: real images are not told apart by it (known of them is sex)"),
        (["by=sex", "generated_labels=TOP/real.csv"], "real.csv: says nothing of 48 of 48 files of"),
        (["generated_labels=TOP/real.csv"], "name the columns with by="),
        (["by=3"], "expected str | tuple[str, ...], got int"),
    ],
)
def test_wrong_slices_are_refused(top, capsys, overrides, said):
    generated = write_pictures(top / "generated", 48, 1)
    assert evaluated(top, generated, *(text.replace("TOP", str(top)) for text in overrides)) == 2
    assert said in capsys.readouterr().err


def test_runs_have_no_labels_and_experiments_bring_their_own(top, capsys):
    (top / "others.yaml").write_text(
        f"extends: {ROOT / 'tests' / 'tiny.yaml'}\ndata: {{kind: chest_xray, count: 160}}\n"
    )
    generated = write_pictures(top / "generated", 48, 1)
    arguments = [str(generated), f"suite={top / 'small.yaml'}", f"against={top / 'others.yaml'}"]
    assert main([*arguments, "by=[finding,sex]"]) == 2
    assert "by=sex: real images are not told apart by it (known of them is finding, view)" in capsys.readouterr().err


def test_what_copies_do_to_the_classifier_is_said_wherever_the_number_is(top, capsys):
    copies = write_pictures(top / "generated", 48, 0, level=9)  # the real pictures saved anew
    assert evaluated(top, copies, "scores.frechet=null") == 0
    sentence = "48 of 48 generated images equal real ones: the classifier, fitted to the one, takes the other for"
    assert f"warning: classifier: {sentence}" in capsys.readouterr().out
    assert (
        sentence in (top / "out" / "report.html").read_text() and sentence in (top / "out" / "scores.csv").read_text()
    )
    (row,) = (
        row for row in json.loads((top / "out" / "scores.json").read_text())["scores"] if row["score"] == "classifier"
    )
    assert row["value"] < 0.3
