import pytest
import torch

from datamodules.phantom_drawings import chest_xray, kidney_ct
from lightning_modules.metrics.features import InceptionV3, RandomConvNet
from lightning_modules.metrics.frechet import FeatureSums, frechet_distance


def drawings(draw, indices, size=32):
    return torch.stack([torch.from_numpy(draw(i, size, size))[None] for i in indices]) * 2 - 1


def test_random_network_is_the_same_everywhere():
    first, second = RandomConvNet(), RandomConvNet()
    images = torch.rand(3, 1, 32, 32) * 2 - 1
    assert first(images).shape == (3, first.dimensions)
    assert torch.equal(first(images), second(images))
    assert first.identity()["weights_sha256"] == "8d05dd6f44cadcb1b3035a44410121bb29bf7abbef90d494a56491be7acfe2f9"
    assert not first.training
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_random_network_is_never_called_fid():
    assert RandomConvNet.score_name == "frechet_random_conv"
    assert InceptionV3.score_name == "fid"


@pytest.mark.parametrize("channels, size", [(1, (64, 64)), (3, (80, 64)), (2, (16, 32)), (4, (33, 47))])
def test_random_network_takes_any_size_and_channels(channels, size):
    features = RandomConvNet()(torch.rand(2, channels, *size) * 2 - 1)
    assert features.shape == (2, 240)
    assert torch.isfinite(features).all()


def test_features_are_float32_under_autocast():
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(RandomConvNet()(images), RandomConvNet()(images.clone()))
        assert RandomConvNet()(images).dtype == torch.float32


@pytest.mark.parametrize("images", [torch.full((2, 1, 32, 32), 255.0), torch.full((2, 1, 32, 32), float("nan"))])
def test_images_outside_the_range_are_refused(images):
    with pytest.raises(ValueError, match=r"expected images in \[-1, 1\]"):
        RandomConvNet()(images)


def test_random_network_tells_data_sets_apart():
    """Two halves of one kind are closer than two kinds, and blur is seen."""
    net = RandomConvNet()

    def statistics(images):
        sums = FeatureSums(net.dimensions)
        sums.add(net(images))
        return sums.statistics()

    half, other = drawings(kidney_ct.draw, range(0, 200, 2)), drawings(kidney_ct.draw, range(200, 400, 2))
    chest = drawings(chest_xray.draw, range(0, 200, 2))
    blurred = torch.nn.functional.avg_pool2d(other, 3, stride=1, padding=1)
    floor = frechet_distance(statistics(half), statistics(other))
    assert frechet_distance(statistics(half), statistics(blurred)) > 3 * floor
    assert frechet_distance(statistics(half), statistics(chest)) > 3 * floor


def test_inception_gives_torch_fidelitys_features(inception_weights):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    extractor = InceptionV3(str(inception_weights))
    extractor.prepare()
    extractor.load()
    levels = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    features = extractor(levels.float() / 127.5 - 1)
    oracle = FeatureExtractorInceptionV3("inception-v3", ["2048"], str(inception_weights))
    expected = oracle(levels.expand(-1, 3, -1, -1))[0]
    assert features.shape == (2, 2048) and features.dtype == torch.float32
    assert float((features - expected).norm() / expected.norm()) < 1e-5
    assert not any(tensor.requires_grad for tensor in extractor.state_dict(keep_vars=True).values())


def learnt(inception_weights):
    """Write batch norms that are not those of the start."""
    state, random = torch.load(inception_weights), torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if ".bn." in name and tensor.ndim:
            low = 0.9 if name.endswith(("weight", "running_var")) else 0.0
            tensor.copy_(torch.rand(tensor.shape, generator=random) * 0.2 + low)
    torch.save(state, inception_weights)


@pytest.mark.parametrize(
    "precision, tolerance", [("float32", 1e-5), pytest.param("bfloat16", 0.03, marks=pytest.mark.slow)]
)
def test_inception_folds_what_batch_norms_have_learnt(inception_weights, precision, tolerance):
    """Also for colour and other shapes; in bfloat16, with eight bits, to a few per cent."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    learnt(inception_weights)
    extractor = InceptionV3(str(inception_weights), precision)
    extractor.load()
    levels = torch.randint(0, 256, (1, 3, 60, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = extractor(levels.float() / 127.5 - 1)
    (expected,) = FeatureExtractorInceptionV3("inception-v3", ["2048"], str(inception_weights))(levels)
    assert expected.std() > 0.001
    assert features.dtype == torch.float32 and extractor.identity()["precision"] == precision
    assert float((features - expected).norm() / expected.norm()) < tolerance


def test_inception_refuses_channels_and_precisions_that_it_has_not(inception_weights):
    extractor = InceptionV3(str(inception_weights))
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        extractor(torch.zeros(1, 2, 32, 32))
    with pytest.raises(RuntimeError, match=r"call prepare\(\) and load\(\)"):
        extractor(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="precision='half'"):
        InceptionV3(str(inception_weights), "half")


def test_inception_refuses_other_weights(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"something else")
    with pytest.raises(RuntimeError, match=r"has SHA-256 .*, the reference FID weights have 6726825d"):
        InceptionV3(str(path)).prepare()


def test_inception_says_where_to_get_weights_that_are_missing(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no such file.*https://"):
        InceptionV3(str(tmp_path / "missing.pth"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(InceptionV3, "URL", (tmp_path / "nowhere.pth").as_uri())
    with pytest.raises(RuntimeError, match=r"could not be downloaded.*callbacks.score.extractor.weights"):
        InceptionV3().prepare()
