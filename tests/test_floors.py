"""How often a perfect generator is called bad, and a shifted one not, against what follows from the rule."""

import numpy as np
import pytest
import torch
from scipy.stats import t as student_t

from experiments.measuring import scoring
from experiments.measuring.image_sets import ImageSet
from experiments.measuring.rows import is_bad
from experiments.measuring.scoring import Scorer, Sets
from lightning_modules.metrics.features import FeatureExtractor
from lightning_modules.metrics.score import DistributionScore

COUNT, TRIALS, REPLICATES = 64, 150, 20


class Numbers(ImageSet):
    """A number per image, each of a group of its own."""

    what, size = "numbers", (1, 1)

    def __init__(self, seed, mean=0.0):
        self.values = torch.randn(COUNT, 1, generator=torch.Generator().manual_seed(seed)) + mean
        self.names = self.groups = [str(i) for i in range(COUNT)]

    def identity(self):
        return {"sum": float(self.values.sum())}

    def read(self, start, stop):
        raise NotImplementedError


class Vectors:
    """Takes the numbers for vectors."""

    device = torch.device("cpu")

    def compute(self, images, wanted, title=""):
        pass

    def vectors(self, images, extractor, at_most=None):
        return images.values


class Same(FeatureExtractor):
    score_name, dimensions = "same", 1

    def identity(self):
        return {"extractor": "same"}

    def features(self, images):
        raise NotImplementedError


class Gap(DistributionScore):
    """The distance of two means, squared and as it is, the spread of both sets, of which distances have a part, and a
    mean of the generated images alone: in authenticity the real ones are compared with nothing but its floor."""

    better, at_least = "lower", 2

    def measure(self, real, generated):
        gap = float(generated.mean() - real.mean())
        spread = float(generated.square().mean() + real.square().mean())
        return {"squared": gap**2, "plain": gap, "spread": spread, "alone": float(generated.mean())}


def shares_called_bad(tmp_path, monkeypatch, mean):
    monkeypatch.setattr(scoring, "versions", lambda: {"git_commit": ""})  # asks git, each time
    bad = {"squared": 0, "plain": 0, "spread": 0, "alone": 0}
    for trial in range(TRIALS):
        sets = Sets(Numbers(2 * trial), Numbers(2 * trial + 1, mean), None, None)
        scorer = Scorer(sets, Vectors(), {"": Same()}, REPLICATES, 0, tmp_path / "record.jsonl")
        for row in scorer.measure({"gap": Gap()}):
            bad[row["name"]] += is_bad(row)
        scorer.record.unlink()
    return {name: count / TRIALS for name, count in bad.items()}


def expected_shares(mean, trials=20_000):
    """Return what follows from the rule where means of halves are normal.

    With n images the mean of a whole set has the variance 1 / n, and those of its halves vary around it by as much: one
    half lies as far above it as the other below.
    """
    random = np.random.default_rng(0)
    shares = {}
    for name in ("squared", "plain", "spread", "alone"):
        variance = (2.0 if name == "spread" else 1.0) / COUNT  # of x^2 is 2, of x is 1
        real, generated = random.normal(0.0, variance**0.5, (2, trials, 1))
        of_real, of_generated = random.normal(0.0, variance**0.5, (2, trials, REPLICATES))
        if name == "spread":
            generated = generated + mean**2 + 2.0 * mean * random.normal(0.0, COUNT**-0.5, (trials, 1))
            scores = generated + of_generated * (1.0 + 2.0 * mean**2) ** 0.5 + real + of_real
            floors = np.broadcast_to(2.0 * real, of_real.shape)
        elif name == "alone":
            scores, floors = mean + generated + of_generated, real - of_real
        else:
            scores = mean + generated + of_generated - real - of_real
            floors = -2.0 * of_real
        if name == "squared":
            scores, floors = scores**2, floors**2
        value = scores.mean(axis=1)
        reach = student_t.ppf(0.975, REPLICATES - 1) * (scores - floors).std(axis=1, ddof=1)
        outside = value > np.quantile(floors, 0.975, axis=1)
        shares[name] = float((outside & (value - reach > floors.mean(axis=1))).mean())
    return shares


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_share_called_bad_is_what_follows_from_the_rule(mean, tmp_path, monkeypatch):
    """A perfect generator is called bad about one time in 40 at most, whichever way a score is made of the two sets."""
    expected = expected_shares(mean)
    found = shares_called_bad(tmp_path, monkeypatch, mean)
    for name, share in expected.items():
        assert found[name] == pytest.approx(share, abs=3.5 * (share * (1.0 - share) / TRIALS) ** 0.5 + 0.01), name
        assert share > 0.7 if mean else share < 0.03
