import hashlib

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from lightning_modules.metrics.features import ExtractorError
from lightning_modules.metrics.torchvision_network import IMAGENET_MEAN, IMAGENET_STD, DenseNet121, TorchvisionNetwork


def seeded(architecture, **options):
    torch.manual_seed(0)
    return torchvision.models.get_model(architecture, weights=None, **options).eval()


@pytest.fixture(scope="module")
def resnet():
    return seeded("resnet18")


def loaded(*args, **options):
    extractor = TorchvisionNetwork(*args, **options)
    extractor.prepare()
    extractor.load()
    return extractor.eval()


def saved(state, path):
    torch.save(state, path)
    return str(path)


def by_hand(network, images):
    """ImageNet's preprocessing and the input of the last layer, by a hook."""
    seen = []
    handle = network.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    resized = torchvision.transforms.functional.resize((images + 1) / 2, [64, 64], antialias=True)
    with torch.no_grad():
        network((resized.expand(-1, 3, -1, -1) - mean) / std)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_what_goes_into_the_head(resnet, tmp_path, channels):
    path = saved(resnet.state_dict(), tmp_path / "resnet18.pth")
    extractor = loaded("resnet18", path, size=64)
    images = torch.rand(2, channels, 96, 80, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = extractor(images)
    assert features.shape == (2, 512) and extractor.dimensions == 512
    torch.testing.assert_close(features, by_hand(resnet, images), rtol=1e-4, atol=1e-5)
    identity = extractor.identity()
    assert identity["weights_sha256"] == hashlib.sha256((tmp_path / "resnet18.pth").read_bytes()).hexdigest()
    assert "64x64" in identity["preprocessing"] and "grey repeated" in identity["preprocessing"]
    assert "resnet18" in identity["extractor"] and extractor.score_name != "fid"
    assert not any(parameter.requires_grad for parameter in extractor.parameters())


def test_a_named_layer_is_averaged_over_its_places(resnet, tmp_path):
    path = saved(resnet.state_dict(), tmp_path / "resnet18.pth")
    extractor = loaded("resnet18", path, layer="layer2", size=64)
    features = extractor(torch.zeros(2, 1, 64, 64))
    assert features.shape == (2, 128) and extractor.dimensions == 128
    assert "layer2" in extractor.identity()["extractor"]
    with pytest.raises(ExtractorError, match=r"layer='layer9': resnet18 has the layers .*avgpool"):
        loaded("resnet18", path, layer="layer9")


def test_prefixes_heads_and_containers_do_not_matter(resnet, tmp_path):
    state = resnet.state_dict()
    images = torch.rand(1, 1, 64, 64) * 2 - 1
    expected = loaded("resnet18", saved(state, tmp_path / "a.pth"), size=64)(images)
    other_head = {**state, "fc.weight": torch.zeros(14, 512), "fc.bias": torch.zeros(14)}
    no_head = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    wrapped = {"state_dict": {f"module.model.{name}": tensor for name, tensor in other_head.items()}, "epoch": 3}
    save_file(no_head, tmp_path / "b.safetensors")
    for path in (str(tmp_path / "b.safetensors"), saved(wrapped, tmp_path / "c.pth")):
        torch.testing.assert_close(loaded("resnet18", path, size=64)(images), expected)


def test_networks_of_one_channel(resnet, tmp_path):
    state = dict(resnet.state_dict())
    state["conv1.weight"] = state["conv1.weight"].sum(dim=1, keepdim=True)
    options = {"size": 64, "scale": (-1024.0, 1024.0), "mean": [0.0], "std": [1024.0]}
    grey = loaded("resnet18", saved(state, tmp_path / "grey.pth"), **options)
    images = torch.rand(2, 1, 64, 64) * 2 - 1
    three = loaded("resnet18", saved(resnet.state_dict(), tmp_path / "rgb.pth"), **options)
    assert grey.preprocessing.channels == 1 and three.preprocessing.channels == 3
    torch.testing.assert_close(grey(images), three(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grey(images.expand(-1, 3, -1, -1)), grey(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(ExtractorError, match=r"mean=\[0.1, 0.2, 0.3\]: the network takes 1 channels"):
        loaded("resnet18", str(tmp_path / "grey.pth"), mean=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        grey(torch.zeros(1, 2, 64, 64))


def test_other_weights_are_refused_by_name(resnet, tmp_path):
    state = resnet.state_dict()
    cases = {
        "misses layer1.0.conv1.weight": {k: v for k, v in state.items() if k != "layer1.0.conv1.weight"},
        "has too many layer5.weight": {**state, "layer5.weight": torch.zeros(1)},
        "has other shapes of layer1.0.conv1.weight": {**state, "layer1.0.conv1.weight": torch.zeros(2, 2)},
        "holds no state dict": [1, 2],
    }
    for message, content in cases.items():
        with pytest.raises(ExtractorError, match=message):
            loaded("resnet18", saved(content, tmp_path / "wrong.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ExtractorError, match="cannot be read as a state dict"):
        loaded("resnet18", str(tmp_path / "text.pth"))


def test_wrong_arguments_are_refused_at_once(tmp_path):
    path = saved({}, tmp_path / "x.pth")
    for message, args, options in (
        ("architecture='resnet19': torchvision has no such", ("resnet19", path), {}),
        (
            "no such file; it should be a state dict of torchvision resnet18",
            ("resnet18", str(tmp_path / "missing.pth")),
            {},
        ),
        ("size=8", ("resnet18", path), {"size": 8}),
        ("value of black", ("resnet18", path), {"scale": (1.0, 0.0)}),
        ("must be above 0", ("resnet18", path), {"std": [0.0]}),
    ):
        with pytest.raises(ValueError, match=message):
            TorchvisionNetwork(*args, **options)
    with pytest.raises(RuntimeError, match=r"call prepare\(\) and load\(\)"):
        TorchvisionNetwork("resnet18", path)(torch.zeros(1, 1, 64, 64))


def test_a_checkpoint_of_chexnets_time(tmp_path):
    """Its names: DataParallel's and its own prefix, norm.1 for norm1, a head of 14 findings behind a sigmoid."""
    network = seeded("densenet121")
    state = network.state_dict()
    old = {}
    for name, tensor in state.items():
        for layer in ("norm", "conv"):
            for number in "12":
                if "denselayer" in name:
                    name = name.replace(f".{layer}{number}.", f".{layer}.{number}.")
        if not name.startswith("classifier") and not name.endswith("num_batches_tracked"):
            old[f"module.densenet121.{name}"] = tensor
    old |= {"module.densenet121.classifier.0.weight": torch.zeros(14, 1024)}
    extractor = DenseNet121(saved({"state_dict": old}, tmp_path / "chexnet.pth.tar"))
    extractor.load()
    images = torch.rand(1, 1, 64, 64) * 2 - 1
    network.classifier = torch.nn.Identity()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    resized = torch.nn.functional.interpolate((images + 1) / 2, (224, 224), mode="bilinear")
    with torch.no_grad():
        expected = network((resized - mean) / std)
    assert extractor(images).shape == (1, DenseNet121.dimensions)
    torch.testing.assert_close(extractor(images), expected, rtol=1e-3, atol=1e-4)
    assert DenseNet121.score_name == "frechet_densenet121"
