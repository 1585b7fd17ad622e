"""How often a perfect generator is called bad, and a shifted one not, against what follows from the rule."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2, ncx2, norm

from experiments.evaluation import scoring
from experiments.evaluation.image_sets import ImageSet
from experiments.evaluation.scoring import Scorer, Sets, is_bad
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
    """The distance of two means: squared, as in a Frechet distance, and as it is, as in an area under a curve."""

    better, at_least = "lower", 2

    def measure(self, real, generated):
        gap = float(generated.mean() - real.mean())
        return {"squared": gap**2, "plain": gap}


def shares_called_bad(tmp_path, monkeypatch, mean):
    monkeypatch.setattr(scoring, "versions", lambda: {"git_commit": ""})  # asks git, each time
    bad = {"squared": 0, "plain": 0}
    for trial in range(TRIALS):
        sets = Sets(Numbers(2 * trial), Numbers(2 * trial + 1, mean), None, None)
        scorer = Scorer(sets, Vectors(), {"": Same()}, REPLICATES, 0, tmp_path / "record.jsonl")
        for row in scorer.measure({"gap": Gap()}):
            bad[row["name"]] += is_bad(row)
        scorer.record.unlink()
    return {name: count / TRIALS for name, count in bad.items()}


@pytest.mark.parametrize("mean", [0.0, 0.6])
def test_share_called_bad_is_what_follows_from_the_rule(mean, tmp_path, monkeypatch):
    """A floor's gaps have the variance 4 / n, that of whole sets 2 / n: their halves are averaged over.

    The floor ends at the 97.5 % quantile of so many squared gaps, q 4 / n, and a mean of squares over halves is
    (chi2 + 1) 2 / n with one degree of freedom. So a perfect generator is called bad more rarely than one time in 40.
    """
    drawn = np.random.default_rng(0).normal(size=(20_000, REPLICATES))
    noncentrality = mean**2 * COUNT / 2.0
    limit = 2.0 * np.quantile(drawn**2, 0.975, axis=1) - 1.0
    expected = {
        "squared": (ncx2.sf(limit, 1, noncentrality) if mean else chi2.sf(limit, 1)).mean(),
        "plain": norm.sf(np.quantile(drawn, 0.975, axis=1) * 2**0.5 - noncentrality**0.5).mean(),
    }
    found = shares_called_bad(tmp_path, monkeypatch, mean)
    for name, share in expected.items():
        assert found[name] == pytest.approx(share, abs=3.5 * (share * (1.0 - share) / TRIALS) ** 0.5), name
        assert share > 0.7 if mean else share < 0.025
