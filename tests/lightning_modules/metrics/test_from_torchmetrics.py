"""Image metrics of torchmetrics as instruments of a suite."""

import inspect
import socket

import numpy as np
import pytest
import torch
import torchmetrics.image
from torch import nn
from torchmetrics.image import (
    FrechetInceptionDistance,
    MemorizationInformedFrechetInceptionDistance,
    PeakSignalNoiseRatio,
    StructuralSimilarityIndexMeasure,
    TotalVariation,
)

from experiments.configuration import objects
from experiments.configuration.errors import ConfigError
from experiments.measuring.scoring import Scorer, Sets, arguments_of
from experiments.measuring.vectors import VectorCache
from lightning_modules.metrics.features import RandomConvNet
from lightning_modules.metrics.from_torchmetrics import TorchmetricsScore
from lightning_modules.metrics.kernel import kernel_distance
from lightning_modules.metrics.score import Instrument, TooFewImagesError

IMAGE = "torchmetrics.image"
KID = f"{IMAGE}.kid.KernelInceptionDistance"


@pytest.fixture
def vectors():
    random = torch.Generator().manual_seed(0)
    return torch.randn(60, 12, generator=random), torch.rand(60, 12, generator=random) * 2


@pytest.fixture
def images():
    return torch.rand(8, 1, 24, 24, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9


def test_two_set_metrics_are_torchmetrics_own_on_our_vectors(vectors):
    """A network that gives back its images stands for what a user of torchmetrics would write."""
    real, generated = vectors
    for name, theirs in (
        ("FrechetInceptionDistance", FrechetInceptionDistance(feature=nn.Identity(), input_img_size=(12,))),
        ("MemorizationInformedFrechetInceptionDistance", MemorizationInformedFrechetInceptionDistance(nn.Identity())),
    ):
        theirs.update(real.double(), real=True)
        theirs.update(generated.double(), real=False)
        (value,) = TorchmetricsScore(f"{IMAGE}.{name}").measure(real, generated).values()
        assert value == pytest.approx(float(theirs.compute()), rel=1e-9)


def test_kernel_distance_of_all_images_is_ours(vectors):
    score = TorchmetricsScore(KID, {"subsets": 1, "subset_size": 60})
    expected = pytest.approx(kernel_distance(*vectors), rel=1e-9)
    assert score.measure(*vectors) == {"torchmetrics_kernel_distance": expected}
    assert (score.better, score.at_most, score.reads, score.unit) == ("lower", 5_000, None, "image")


def test_random_subsets_are_the_same_ones_each_time(vectors):
    score = TorchmetricsScore(KID, {"subset_size": 20, "subsets": 3})
    first = score.measure(*vectors)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert score.measure(*vectors) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_warns_of_few_images_only_where_a_covariance_needs_them():
    assert TorchmetricsScore(f"{IMAGE}.fid.FrechetInceptionDistance").enough(240) == 480
    assert TorchmetricsScore(KID).enough(240) == 100


@pytest.mark.parametrize(
    "name, make",
    [
        ("StructuralSimilarityIndexMeasure", lambda: StructuralSimilarityIndexMeasure(data_range=1.0)),
        ("PeakSignalNoiseRatio", lambda: PeakSignalNoiseRatio(data_range=1.0)),
    ],
)
def test_metrics_of_pairs_take_disjoint_pairs_in_0_to_1(images, name, make):
    score = TorchmetricsScore(f"{IMAGE}.{name}")
    found = score.reads(images[:7])
    grey = (images + 1) / 2
    for i in range(3):
        expected = float(make()(grey[2 * i : 2 * i + 1], grey[2 * i + 1 : 2 * i + 2]))
        assert found[2 * i : 2 * i + 2, 0].tolist() == pytest.approx([expected, expected], rel=1e-6)
    assert found[6].isnan() and found.shape == (7, 1)
    pairs = found[0:6:2]
    (value,) = score.measure(pairs, pairs[:2]).values()
    assert value == pytest.approx(float(pairs[:2].mean()), rel=1e-6)
    assert (score.better, score.unit, score.at_most) == ("as real", "pair", 2_000)


def test_metrics_of_single_images_are_their_mean(images):
    score = TorchmetricsScore(f"{IMAGE}.tv.TotalVariation", {"reduction": "mean"})
    values = score.reads(images)
    expected = TotalVariation(reduction="mean")((images + 1) / 2)
    assert score.measure(values, values) == {"torchmetrics_total_variation": pytest.approx(float(expected), rel=1e-5)}
    assert (score.better, score.unit) == ("as real", "image")


def test_every_image_metric_of_torchmetrics_is_taken_or_refused_in_one_sentence(monkeypatch, capsys):
    """Offline, and at once: whatever would open a connection fails this test."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a look-up"))
    taken, refused = [], {}
    for name in (*torchmetrics.image.__all__, "arniqa.ARNIQA"):
        try:
            taken.append(TorchmetricsScore(f"{IMAGE}.{name}"))
        except ValueError as error:
            refused[name] = str(error)
    assert all("\n" not in sentence and sentence.startswith("metric='torchmetrics") for sentence in refused.values())
    assert refused.keys() == {
        "DeepImageStructureAndTextureSimilarity",
        "InceptionScore",
        "LearnedPerceptualImagePatchSimilarity",
        "PerceptualPathLength",
        "QualityWithNoReference",
        "SpatialDistortionIndex",
        "arniqa.ARNIQA",
    }
    lpips = refused["LearnedPerceptualImagePatchSimilarity"]
    assert "its weights are not here, and an evaluation downloads nothing; fetch https://download.pytorch.org" in lpips
    assert "checkpoints/alexnet-owt-7be5be79.pth" in lpips
    assert len(taken) == 16
    assert capsys.readouterr() == ("", "")  # torch.hub says that it downloads


@pytest.mark.slow
def test_weights_in_torchs_cache_are_used(images, tmp_path, monkeypatch):
    from torchvision.models import alexnet

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(alexnet().state_dict(), tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth")
    score = TorchmetricsScore(f"{IMAGE}.lpip.LearnedPerceptualImagePatchSimilarity")
    larger = nn.functional.interpolate(images[:4], (64, 64))
    values = score.reads(larger.repeat_interleave(2, dim=0)[:4])
    assert values.abs().max() < 1e-6  # pairs of equal images
    values = score.reads(larger)
    assert values.min() > 1e-3 and values[0] == values[1]
    identity = score.reads.identity()
    assert len(identity["weights_sha256"]) == 64 and "grey repeated to three channels" in identity["preprocessing"]


@pytest.mark.parametrize(
    "metric, sentence",
    [
        ("os.system", "name a class of torchmetrics.image, such as"),
        ("torchmetrics.Metric", "name a class of torchmetrics.image, such as"),
        ("torchmetrics.imagery.fid.FID", "name a class of torchmetrics.image, such as"),
        ("torchmetrics.image.fid.__import__('os')", "name a class of torchmetrics.image, such as"),
        ("torchmetrics.image.fid.Metric", "has no such metric there"),
        ("torchmetrics.image.fid.torch", "has no such metric there"),
        ("torchmetrics.image.fid.NoTrainInceptionV3", "has no such metric there"),
        ("torchmetrics.image.fd.Frechet", "No module named 'torchmetrics.image.fd'"),
    ],
)
def test_nothing_but_torchmetrics_own_image_metrics_can_be_named(metric, sentence):
    with pytest.raises(ValueError, match=r"^metric=") as refusal:
        TorchmetricsScore(metric)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(
    "metric, arguments, sentence",
    [
        (KID, {"feature": 64}, "arguments.feature: follows from Mirage's images and extractors; remove it"),
        (KID, {"subset": 3}, "arguments.subset: KernelInceptionDistance has no such argument; it has coef, degree"),
        (KID, {"subset_size": -1}, "arguments={'subset_size': -1}: Argument `subset_size` expected to be integer"),
        (f"{IMAGE}.PeakSignalNoiseRatio", {"data_range": 255}, "arguments.data_range: follows from Mirage's images"),
        (KID, {"dist_sync_fn": "x"}, "arguments.dist_sync_fn: KernelInceptionDistance has no such argument"),
    ],
)
def test_arguments_are_checked(metric, arguments, sentence):
    with pytest.raises(ValueError) as refusal:
        TorchmetricsScore(metric, arguments)
    assert str(refusal.value).startswith(sentence)


def test_what_a_metric_says_against_images_becomes_a_sentence_of_a_row(images):
    for name, sentence in (
        ("SpectralAngleMapper", "Expected channel dimension"),
        ("MultiScaleStructuralSimilarityIndexMeasure", "For a given number of `betas`"),
        ("VisualInformationFidelity", "Calculated padded input size|Invalid size"),
    ):
        with pytest.raises(ValueError, match=f"{IMAGE}.{name}: {sentence}"):
            TorchmetricsScore(f"{IMAGE}.{name}").reads(images)
    with pytest.raises(ValueError, match=f"{KID}: Argument `subset_size` should be smaller"):
        TorchmetricsScore(KID).measure(torch.randn(50, 3), torch.randn(50, 3))
    psnr = TorchmetricsScore(f"{IMAGE}.PeakSignalNoiseRatio")
    values = psnr.reads(images[[0, 0, 1, 2]])[::2]
    with pytest.raises(ValueError, match=r"not finite for 1 of 2 pairs \(PSNR is infinite for equal images\)"):
        psnr.measure(values, values)
    with pytest.raises(TooFewImagesError, match="TorchmetricsScore needs at least 2 pairs of each set, got 1"):
        psnr.measure(values[1:], values[1:])


def test_a_suite_gives_it_intervals_and_floors(tmp_path):
    class Noise:
        what, size, own_size = "noise", (16, 16), (16, 16)

        def __init__(self, count, seed, width):
            random = np.random.default_rng(seed)
            self.images = torch.from_numpy(random.uniform(-width, width, (count, 1, 16, 16)).astype(np.float32))
            self.groups, self.names = [str(i) for i in range(count)], [str(i) for i in range(count)]
            self.identity = lambda: {"noise": [count, seed, width]}

        def __len__(self):
            return len(self.images)

        def read(self, start, stop):
            return self.images[start:stop]

    here = "lightning_modules.metrics.from_torchmetrics.TorchmetricsScore"
    nodes = {
        "kid": {"_target_": here, "metric": KID, "arguments": {"subset_size": 20, "subsets": 2}},
        "ssim": {"_target_": here, "metric": f"{IMAGE}.StructuralSimilarityIndexMeasure"},
        "ms_ssim": {"_target_": here, "metric": f"{IMAGE}.MultiScaleStructuralSimilarityIndexMeasure"},
    }
    nodes["kid_again"] = {**nodes["kid"], "arguments": {"subset_size": 10, "subsets": 2}}
    assert [problem for name, node in nodes.items() for problem in objects.check(node, name, Instrument)] == []
    instruments = {name: objects.build(node, name, Instrument) for name, node in nodes.items()}
    sets = Sets(Noise(100, 0, 0.5), Noise(100, 1, 0.9), None, None)
    scorer = Scorer(sets, VectorCache(tmp_path), {"random_conv": RandomConvNet()}, 10, 0, tmp_path / "scores")
    kid, ssim, ms_ssim, again = scorer.measure(instruments)
    assert kid["name"] == "torchmetrics_kernel_distance_random_conv_kid" and kid["verdict"] == "worse than the floor"
    assert kid["low"] < kid["value"] < kid["high"] and kid["better"] == "lower"
    assert ssim["name"] == "torchmetrics_structural_similarity_index_measure" and ssim["better"] == "as real"
    assert ssim["low"] < ssim["value"] < ssim["high"] and "verdict" in ssim
    assert ms_ssim["value"] is None and "must be larger than or equal to 32" in ms_ssim["refused"]
    assert kid["fingerprint"]["torchmetrics"] == torchmetrics.__version__
    assert kid["fingerprint"]["arguments"] == {"metric": KID, "arguments": {"subset_size": 20, "subsets": 2}}
    assert again["fingerprint"] != kid["fingerprint"]
    assert arguments_of(instruments["ssim"])["metric"].endswith("StructuralSimilarityIndexMeasure")


def test_a_configuration_is_checked_before_anything_is_measured():
    node = {"_target_": "lightning_modules.metrics.from_torchmetrics.TorchmetricsScore", "metric": KID}
    assert (
        "TorchmetricsScore has no argument 'arguement'" in objects.check({**node, "arguement": {}}, "s", Instrument)[0]
    )
    assert objects.check({**node, "arguments": {"a": [[1]]}}, "s", Instrument)
    with pytest.raises(ConfigError, match=r"scores\.mine\.arguments\.feature: follows from"):
        objects.build({**node, "arguments": {"feature": 64}}, "scores.mine", Instrument)
    assert inspect.signature(TorchmetricsScore).parameters.keys() == {"metric", "arguments"}
