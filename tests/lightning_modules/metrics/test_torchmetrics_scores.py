"""Mirage's scores as torchmetrics.Metric; several processes: tests/test_torchmetrics_ddp.py."""

import copy
import pickle
import re

import pytest
import torch
from conftest import ROOT
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.image import FrechetInceptionDistance, MultiScaleStructuralSimilarityIndexMeasure

from experiments.measuring.settings import build_tools, load_suite
from lightning_modules.metrics import frechet, kernel, precision_recall, sliced_wasserstein
from lightning_modules.metrics.efficientnet import EfficientNetLite0
from lightning_modules.metrics.features import FeatureExtractor, RandomConvNet
from lightning_modules.metrics.ms_ssim import ms_ssim
from lightning_modules.metrics.torchmetrics_scores import (
    DensityCoverage,
    FrechetDistance,
    KernelDistance,
    MultiScaleStructuralSimilarity,
    PrecisionRecall,
    SlicedWasserstein,
)


class Counting(RandomConvNet):
    """RandomConvNet that counts the images it is shown."""

    seen = 0

    def features(self, images):
        Counting.seen += len(images)
        return super().features(images)


@pytest.fixture
def images():
    random = torch.Generator().manual_seed(0)
    return [torch.rand(n, 1, 32, 32, generator=random) * width - 0.9 for n, width in ((30, 1.8), (24, 1.6))]


def given(metric, images, size=7):
    for x, real in zip(images, (True, False), strict=True):
        for part in x.split(size):
            metric.update(part, real=real)
    return metric


def test_each_gives_what_its_plain_functions_give(images):
    net = RandomConvNet()
    real, generated = (net(x) for x in images)
    close = {"rel": 1e-5, "abs": 1e-7}  # float32
    value = given(FrechetDistance(net), images).compute()
    assert value.shape == () and value.dtype == torch.float32
    assert float(value) == pytest.approx(frechet.frechet_distance_of(real, generated), **close)
    found = given(KernelDistance(net), images).compute()
    assert float(found) == pytest.approx(kernel.kernel_distance(real, generated), **close)
    for metric, oracle, names in (
        (PrecisionRecall(net, k=4), precision_recall.precision_recall(real, generated, 4), ("precision", "recall")),
        (DensityCoverage(net, k=9), precision_recall.density_coverage(real, generated, 9), ("density", "coverage")),
    ):
        assert given(metric, images).compute() == pytest.approx(dict(zip(names, oracle, strict=True)), rel=1e-6)
    score = sliced_wasserstein.SlicedWasserstein()
    expected = score.measure(*(score.reads(x) for x in images))["sliced_wasserstein"]
    assert float(given(SlicedWasserstein(), images).compute()) == pytest.approx(expected, **close)


def test_frechet_distance_equals_torchmetrics_own_on_our_features(images):
    net = RandomConvNet()
    theirs = FrechetInceptionDistance(feature=nn.Identity(), input_img_size=(net.dimensions,), normalize=True)
    for x, real in zip(images, (True, False), strict=True):
        theirs.update(net(x).double(), real=real)
    assert float(given(FrechetDistance(net), images).compute()) == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_structural_similarity_is_torchmetrics_own_and_takes_any_size(images):
    random = torch.Generator().manual_seed(1)
    large = torch.rand(4, 1, 180, 180, generator=random) * 2 - 1
    other = (large + 0.4 * torch.randn(large.shape, generator=random)).clamp(-1, 1)
    ours = MultiScaleStructuralSimilarity()
    for a, b in zip(large.split(3), other.split(3), strict=True):
        ours.update(a, b)
    theirs = MultiScaleStructuralSimilarityIndexMeasure(data_range=2.0, normalize="relu")(large, other)
    assert float(ours.compute()) == pytest.approx(float(theirs), abs=2e-3)  # it pads; ours takes places that fit
    ours.reset()
    small = images[0][:-1:2], images[0][1::2]
    assert float(ours(*small)) == pytest.approx(float(ms_ssim(*small).mean()), rel=1e-6)


def test_statistics_are_to_the_bit_those_of_feature_sums(images):
    net = RandomConvNet()
    sums = frechet.FeatureSums(net.dimensions)
    for part in images[0].split(7):
        sums.add(net(part))
    expected, found = sums.statistics(), given(FrechetDistance(net), images).statistics(real=True)
    assert torch.equal(found.mean, expected.mean) and torch.equal(found.covariance, expected.covariance)
    assert found.count == 30


def test_a_set_that_is_not_used_takes_no_memory(images):
    metric = FrechetDistance(RandomConvNet())
    metric.update(images[0], real=False)
    metric.statistics(real=False)
    assert metric.real_outer.numel() == 1 and metric.generated_outer.shape == (240, 240)
    assert sum(default.numel() for default in metric._defaults.values()) == 6


@pytest.mark.parametrize("make", [FrechetDistance, KernelDistance, PrecisionRecall, DensityCoverage])
def test_reset_keeps_the_real_images_where_asked(images, make):
    expected = given(make(RandomConvNet()), images).compute()
    metric = given(make(RandomConvNet(), reset_real_features=False), images)
    for _ in range(2):
        assert metric.compute() == expected
        metric.reset()
        for part in images[1].split(5):
            metric.update(part, real=False)
    forgetful = given(make(RandomConvNet()), images)
    forgetful.reset()
    forgetful.update(images[1], real=False)
    with pytest.raises(ValueError, match=f"{make.__name__}.*real images"):
        forgetful.compute()


def test_the_first_images_are_used_and_no_others_are_looked_at(images):
    Counting.seen = 0
    metric = KernelDistance(Counting(), at_most=10)
    with pytest.warns(UserWarning, match="of the generated images the first 10 are used: give them in a random order"):
        given(metric, images)
    assert Counting.seen == 20
    net = RandomConvNet()
    expected = kernel.kernel_distance(*(net(x[:10]) for x in images))
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="at_most=3: PrecisionRecall needs at least 4 images"):
        PrecisionRecall(net, at_most=3)
    assert float(given(KernelDistance(net, at_most=None), images).compute()) != float(metric.compute())


def test_those_of_a_collection_share_images_where_their_settings_are_equal(images):
    Counting.seen = 0
    net = Counting()
    few = {"few": KernelDistance(net, at_most=10), "all": KernelDistance(net), "shares": PrecisionRecall(net)}
    with pytest.warns(UserWarning, match="the first 10 are used"):
        together = given(MetricCollection(few), images)
    assert Counting.seen < 3 * 54
    found = together.compute()
    alone = given(KernelDistance(RandomConvNet()), images).compute()
    assert found["all"] == alone and found["few"] != alone
    assert found["precision"] == given(PrecisionRecall(RandomConvNet()), images).compute()["precision"]


def test_no_weights_in_the_module_and_copies_work(images):
    module = nn.Module()
    module.metric = given(KernelDistance(RandomConvNet()), images)
    module.frechet = given(FrechetDistance(RandomConvNet()), images)
    assert not module.state_dict() and not list(module.parameters())
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        for name in ("metric", "frechet"):
            assert getattr(again, name).compute() == getattr(module, name).compute()
    assert module.to("cpu").half().metric.compute() == module.metric.compute()


def test_the_extractor_follows_the_metric_to_its_device(images):
    class Unchecked(RandomConvNet):  # a meta tensor has no range
        def forward(self, images):
            return self.features(images)

    metric = FrechetDistance(Unchecked()).to("meta")
    metric.update(images[0], real=True)
    assert {kernel.device.type for kernel in metric.extractor.parameters()} == {"meta"}
    assert {state.device.type for state in metric.metric_state.values()} == {"meta"}
    assert metric.real_outer.shape == (240, 240)


def test_empty_batches_count_for_nothing(images):
    expected = given(KernelDistance(RandomConvNet()), images).compute()
    metric = KernelDistance(RandomConvNet())
    metric.update(images[0][:0], real=True)
    assert given(metric, images).compute() == expected
    frechet_distance = FrechetDistance(RandomConvNet())
    frechet_distance.update(images[0][:0], real=True)
    with pytest.raises(ValueError, match="FrechetDistance, real images: a covariance needs at least 2 images, got 0"):
        frechet_distance.compute()


def test_what_cannot_be_measured_is_refused_in_a_sentence(images):
    for metric in (FrechetDistance(RandomConvNet()), KernelDistance(RandomConvNet()), SlicedWasserstein()):
        with pytest.raises(ValueError, match=r"expected images in \[-1, 1\], got .* \.\. 255"):
            metric.update(images[0].add(0.9).mul(255 / 1.8).round().clamp(max=254).add(1), real=True)
        with pytest.raises(TypeError, match=r"call update\(images, real=...\), then compute"):
            metric(images[0], real=True)
    with pytest.raises(ValueError, match="KernelDistance: no real images were given"):
        KernelDistance(RandomConvNet()).compute()
    similarity = MultiScaleStructuralSimilarity()
    with pytest.raises(ValueError, match="MultiScaleStructuralSimilarity: no images were given"):
        similarity.compute()
    with pytest.raises(ValueError, match="images of different shapes"):
        similarity.update(images[0], images[1])
    with pytest.raises(ValueError, match=r"expected images in \[-1, 1\]"):
        similarity.update(images[0] + 3, images[0] + 3)


def test_the_default_extractor_is_ready(monkeypatch):
    from lightning_modules.metrics import torchmetrics_scores

    class Learned(RandomConvNet):
        def load(self):
            self.is_loaded = True

    monkeypatch.setattr(torchmetrics_scores, "EfficientNetLite0", Learned)
    assert KernelDistance().extractor.is_loaded
    assert isinstance(FrechetDistance().extractor, FeatureExtractor)


def test_the_code_of_the_docs_runs(images):
    """The page's module is validated by Lightning with the default extractor."""
    page = (ROOT / "experiments" / "docs" / "torchmetrics.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(code, names)
    real, fake = images[0][:24], images[1]
    batches = iter(fake.split(8))
    module = names["MyGAN"](lambda noise: next(batches))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    loader = torch.utils.data.DataLoader(real, 8)
    (logged,) = names["L"].Trainer(**quiet).validate(module, loader, verbose=False)
    net = module.frechet.extractor
    assert isinstance(net, EfficientNetLite0)
    expected = frechet.frechet_distance_of(net(real), net(fake))
    assert logged["frechet_distance"] == pytest.approx(expected, rel=1e-4)
    assert logged.keys() == {"frechet_distance", "precision", "recall"}


def test_the_suite_of_the_docs_is_one(tmp_path):
    page = (ROOT / "experiments" / "docs" / "torchmetrics.md").read_text()
    (suite,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(suite)
    tools = build_tools(load_suite(str(tmp_path / "mine.yaml"), []))
    assert {"kid", "ssim", "frechet"} <= tools.instruments.keys()
