import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from lightning_modules.metrics.features import InceptionProbabilities
from lightning_modules.metrics.inception_score import InceptionScore, inception_score
from lightning_modules.metrics.score import TooFewImagesError


def test_equals_torch_fidelity_on_the_same_logits():
    logits = torch.randn(500, 1008, generator=torch.Generator().manual_seed(0)) * 3
    expected = isc_features_to_metric(logits, splits=1, shuffle=False)["inception_score_mean"]
    assert inception_score(logits.softmax(dim=1)) == pytest.approx(expected, rel=1e-6)
    assert expected > 2


@pytest.mark.parametrize("classes", [1, 3, 10])
def test_counts_classes_that_are_certain_and_equally_frequent(classes):
    certain = torch.eye(12)[torch.arange(60) % classes]
    assert inception_score(certain) == pytest.approx(classes)
    assert inception_score(torch.full((5, 7), 1 / 7)) == pytest.approx(1.0)


def test_what_is_no_probability_is_refused():
    for wrong in (torch.randn(5, 4), torch.rand(5, 4), torch.full((5, 4), -0.25)):
        with pytest.raises(ValueError, match="expected probabilities"):
            inception_score(wrong)


def test_probabilities_are_torch_fidelitys(inception_weights):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    instrument = InceptionScore(str(inception_weights))
    assert isinstance(instrument.reads, InceptionProbabilities)
    instrument.reads.prepare()
    instrument.reads.load()
    levels = torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8)
    probabilities = instrument.reads(levels.float() / 127.5 - 1)
    oracle = FeatureExtractorInceptionV3("inception-v3", ["logits_unbiased"], str(inception_weights))
    (logits,) = oracle(levels.expand(-1, 3, -1, -1))
    assert probabilities.shape == (4, InceptionProbabilities.dimensions)
    torch.testing.assert_close(probabilities, logits.softmax(dim=1))
    expected = isc_features_to_metric(logits, splits=1, shuffle=False)["inception_score_mean"]
    assert instrument.measure(probabilities, probabilities) == {"inception_score": pytest.approx(expected, rel=1e-6)}
    with pytest.raises(TooFewImagesError, match="InceptionScore needs at least 2"):
        instrument.measure(probabilities, probabilities[:1])
    assert instrument.reads.score_name != "fid"
