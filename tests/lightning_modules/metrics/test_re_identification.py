"""Re-identification: the verifier against discriminant analysis, the test against exact probabilities, and both on
patients of whom everything is known."""

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom

from lightning_modules.metrics import re_identification
from lightning_modules.metrics.features import RandomConvNet
from lightning_modules.metrics.re_identification import (
    Disturbed,
    Films,
    ReIdentification,
    Verifier,
    best_matches,
    disturbed,
    relabelled,
    share_of_training,
)
from lightning_modules.metrics.score import TooFewImagesError

NUMBERS, WITHIN = 30, 0.3  # of a vector; standard deviation of a patient's films, that of patients is 1


def centres(count, seed):
    return torch.randn(count, NUMBERS, generator=torch.Generator().manual_seed(seed))


def films_of(centre, each, seed, within=WITHIN):
    noise = torch.randn(len(centre) * each, NUMBERS, generator=torch.Generator().manual_seed(seed))
    patients = [f"{seed}-{i}" for i in range(len(centre)) for _ in range(each)]
    return Films(centre.repeat_interleave(each, dim=0) + within * noise, patients)


def examined(seed, leaked=0, images=300, within=WITHIN, train=120, held_out=60, each=2):
    """A generator whose images show new patients, and of which so many show training patients in another film."""
    known = centres(train, 10 * seed)
    of_train = films_of(known, each, 10 * seed + 1, within)
    looks = of_train.vectors + 0.5 * within * films_of(known, each, 10 * seed + 2, 1.0).vectors.sub(of_train.vectors)
    generated = films_of(centres(images, 10 * seed + 3), 1, 10 * seed + 4, within).vectors
    if leaked:
        generated[:leaked] = films_of(known[:leaked], 1, 10 * seed + 5, within).vectors
    others = films_of(centres(held_out, 10 * seed + 6), each, 10 * seed + 7, within)
    return ReIdentification().examine(of_train, looks, others, generated)


# The verifier ---------------------------------------------------------------------------------------------------------


def test_the_verifiers_directions_are_those_of_discriminant_analysis(monkeypatch):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    monkeypatch.setattr(re_identification, "SHRINKAGE", 0.0)
    spread = torch.linspace(0.2, 3.0, NUMBERS)
    films = films_of(centres(300, 0) * spread, 3, 1)
    verifier = Verifier(*films)
    analysis = LinearDiscriminantAnalysis(solver="eigen").fit(films.vectors.double().numpy(), films.patients)
    theirs = torch.from_numpy(analysis.scalings_[:, :NUMBERS]).double()
    ours = verifier.map.flip(dims=(1,))  # the best direction first
    alike = torch.cosine_similarity(ours[:, :10], theirs[:, :10], dim=0).abs()
    assert alike.min() > 1 - 1e-8


def test_directions_are_weighed_by_the_intraclass_correlation():
    spread = torch.linspace(0.1, 1.0, NUMBERS)
    verifier = Verifier(*films_of(centres(2000, 2) * spread, 4, 3))
    truth = spread**2 / (spread**2 + WITHIN**2)
    assert torch.allclose(verifier.correlations.float().sort().values, truth.sort().values, atol=0.04)
    one, another = (films_of(centres(2000, 2) * spread, 1, seed).vectors for seed in (4, 5))
    x, y = ((films.double() - verifier.centre) @ verifier.map for films in (one, another))
    expected = verifier.correlations**2  # of a patient's product: the weight times the correlation
    assert torch.allclose((x * y).mean(dim=0), expected, atol=0.06)
    assert (x * y.roll(1, dims=0)).mean(dim=0).abs().max() < 0.06


def test_the_best_match_does_not_depend_on_blocks(monkeypatch):
    queries, films = (torch.nn.functional.normalize(centres(n, n), dim=1) for n in (70, 90))
    scores, which = best_matches(queries, films)
    assert torch.equal(which, (queries @ films.T).argmax(dim=1)) and scores.max() < 1.0
    monkeypatch.setattr(re_identification, "BLOCK", 16)
    assert torch.equal(best_matches(queries, films)[1], which)


def test_a_disturbed_image_depends_on_its_pixels_alone():
    images = torch.rand(5, 1, 32, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    looks = [disturbed(image[None]) for image in images]
    assert all(look.shape == (1, 1, 32, 40) and look.abs().max() <= 1 and look.isfinite().all() for look in looks)
    assert torch.equal(disturbed(images[3:4].clone()), looks[3])
    assert not torch.equal(disturbed(images[:1] * 0.99), looks[0])
    extractor = RandomConvNet()
    assert torch.allclose(Disturbed(extractor)(images)[2:3], Disturbed(extractor)(images[2:3]), atol=1e-5)
    assert Disturbed(extractor).identity() != extractor.identity()


# The test -------------------------------------------------------------------------------------------------------------


def test_relabelling_is_fishers_exact_test():
    """Patients that are matched once or not at all: a hypergeometric tail."""
    is_train = torch.arange(60) < 40
    counts = torch.zeros(60, 3, dtype=torch.long)
    counts[:9, 0], counts[40:41, 0] = 1, 1  # 9 of 10 matches are training patients
    counts[:2, 1], counts[40:48, 1] = 1, 1  # 2 of 10
    p = relabelled(counts, is_train, torch.ones(60, dtype=torch.long))
    exact = [hypergeom.sf(8, 60, 40, 10), hypergeom.sf(1, 60, 40, 10), 1.0]
    assert np.allclose(p, exact, atol=0.03)  # three standard errors of 1,999 relabellings


def test_patients_change_places_among_those_with_as_many_films_only():
    """Training patients have more films and are matched more often: that alone is no sign."""
    films = torch.tensor([8] * 50 + [2] * 10 + [8] * 10 + [2] * 50)
    is_train = torch.arange(120) < 60
    counts = torch.where(films == 8, 3, 0)[:, None]
    assert relabelled(counts, is_train, films)[0] == 1.0
    assert relabelled(counts, is_train, torch.full_like(films, 1))[0] < 0.001
    share = share_of_training(counts[:, 0], is_train, films)
    assert share.value == pytest.approx(0.5)


def test_share_is_that_of_equally_many_patients():
    is_train, films = torch.arange(300) < 200, torch.ones(300, dtype=torch.long)
    even = share_of_training(torch.ones(300, dtype=torch.long), is_train, films)
    assert even.value == pytest.approx(0.5)
    twice = share_of_training(torch.where(is_train, 2, 1), is_train, films)
    assert twice.value == pytest.approx(2 / 3)
    one = share_of_training((torch.arange(300) < 5).long(), is_train, films)
    assert one.value == 1.0 and one.low == pytest.approx(0.4) and one.high == 1.0  # the rule of three
    assert share_of_training(torch.zeros(300, dtype=torch.long), is_train, films) is None


# Of n generators at most 5 % are expected to be accused: not more than ``most`` with a probability of 0.99 (binomial).
@pytest.mark.parametrize(("count", "most"), [(4, 1), pytest.param(36, 5, marks=pytest.mark.slow)])
def test_a_perfect_generator_is_accused_as_seldom_as_promised(count, most):
    findings = [examined(seed, images=150) for seed in range(count)]
    assert sum(bool((finding.p_values <= 0.05 / 4).any()) for finding in findings) <= most
    shares = [finding.nearest.value for finding in findings]
    assert abs(np.mean(shares) - 0.5) < 0.12 / count**0.5  # one has a standard error of 0.04
    assert sum(finding.nearest.low <= 0.5 <= finding.nearest.high for finding in findings) >= 0.75 * count
    assert all(finding.area.low > 0.99 and finding.recognised > 0.9 for finding in findings)


def test_leaked_patients_are_found_and_named():
    finding = examined(1, leaked=30)  # one in ten
    assert (finding.p_values <= 0.001).any()
    assert finding.above.low > 0.6 and finding.to_train >= 25 > 3 * finding.by_chance
    named = {match.generated: match.train for match in finding.matches if match.generated < 30}
    assert sum(train // 2 == generated for generated, train in named.items()) >= 25  # two films of each, in order
    assert [match.score for match in finding.matches] == sorted((m.score for m in finding.matches), reverse=True)


def test_what_is_planted_says_how_much_is_seen():
    seeing, blind = examined(2, images=600), examined(2, images=150, within=30.0)
    assert (seeing.planted.amin(dim=1) <= 0.0125).double().mean() > 0.9
    assert (blind.planted.amin(dim=1) <= 0.0125).double().mean() < 0.3
    assert blind.area.low < 0.5 < blind.area.high and blind.recognised < 0.1


def test_the_finding_repeats_and_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = examined(3, images=60), examined(3, images=60)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.p_values, second.p_values) and first.matches == second.matches
    assert first.area == second.area and torch.equal(first.planted, second.planted)


def test_a_verifier_that_knows_one_side_accuses_a_perfect_generator():
    """Why folds are needed: known patients' films are drawn together, and lie where fewer strangers are nearest."""
    known, others = films_of(centres(60, 0), 2, 1, 1.0), films_of(centres(60, 2), 2, 3, 1.0)
    strangers = films_of(centres(3000, 4), 1, 5, 1.0).vectors
    verifier = Verifier(*known)
    both = torch.cat([verifier.embed(known.vectors), verifier.embed(others.vectors)])
    share = (best_matches(verifier.embed(strangers), both)[1] < len(known.vectors)).double().mean()
    fresh = Verifier(*films_of(centres(60, 6), 2, 7, 1.0))
    both = torch.cat([fresh.embed(known.vectors), fresh.embed(others.vectors)])
    fair = (best_matches(fresh.embed(strangers), both)[1] < len(known.vectors)).double().mean()
    assert abs(share - 0.5) > 3 * abs(fair - 0.5)


def test_patients_of_one_film_are_refused():
    with pytest.raises(TooFewImagesError, match=r"needs patients with several images: 0 of 120 training patients"):
        examined(0, each=1)
    with pytest.raises(TooFewImagesError, match=r"needs 20 held-out patients to compare, got 9"):
        examined(0, held_out=9)
    with pytest.raises(ValueError, match=r"false_match_rate=0\.0: must lie between 0 and 1"):
        ReIdentification(0.0)


# Sets that are made in another way ------------------------------------------------------------------------------------


def test_held_out_patients_with_fewer_images_than_all_training_patients_are_refused():
    train, held_out = films_of(centres(120, 1), 2, 3), films_of(centres(60, 4), 1, 5)
    looks = films_of(centres(120, 1), 2, 6).vectors
    with pytest.raises(TooFewImagesError, match="compares patients with equally many images"):
        ReIdentification().examine(train, looks, held_out, films_of(centres(100, 7), 1, 8).vectors)
