"""Features of published networks that learned radiology: RadImageNet's ResNet-50 and torchxrayvision's DenseNet-121."""

from torch import Tensor, nn

from lightning_modules.metrics.features import ExtractorError
from lightning_modules.metrics.local_weights import LocalNetwork, Preprocessing

_PARTS = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


class RadImageNetResNet50(LocalNetwork):
    """RadImageNet's ResNet-50 for PyTorch (Mei et al. 2022, doi:10.1148/ryai.210315), 2,048 pooled features.

    Trained by its authors on 1.35 million CT, MRI and ultrasound images of 165 findings. The file is ``ResNet50.pt`` of
    ``RadImageNet_pytorch``: a state dict of torchvision's ResNet-50 as a Sequential without its head. Preprocessing is
    that of the authors' ``pytorch_example.ipynb``: (level - 127.5) * 2 / 255, 224x224, channels as OpenCV reads them.

    Another file in circulation, ``RadImageNet-ResNet50_notop.pth``, is ``RadImageNetKerasResNet50``.

    Args:
        weights: The local file; see ``LocalNetwork``.
    """

    score_name = "frechet_radimagenet_resnet50"
    dimensions = 2048
    title = "RadImageNet ResNet-50, PyTorch"
    preprocessing = Preprocessing(size=224, scale=(-1.0, 1.0), bgr=True)

    def build(self, state: dict[str, Tensor]) -> nn.Module:
        """Return torchvision's ResNet-50 without its head, with names in place of the Sequential's numbers."""
        if "conv1.bias" in state:
            raise ExtractorError(
                f"{self.weights} is RadImageNet's ResNet-50 converted from Keras, another network with another "
                f"preprocessing: name the class {__name__}.RadImageNetKerasResNet50"
            )
        renamed = {}
        for name, tensor in state.items():
            number, _, rest = name.removeprefix("backbone.").partition(".")
            renamed[f"{_PARTS.get(number, number)}.{rest}"] = tensor
        return self.fill(_headless_resnet50(), renamed)


class RadImageNetKerasResNet50(LocalNetwork):
    """RadImageNet's ResNet-50 converted from Keras (Mei et al. 2022, doi:10.1148/ryai.210315), 2,048 pooled features.

    The file is ``RadImageNet-ResNet50_notop.pth``, which MONAI and ``Warvito/radimagenet-models`` load. Keras' network
    is not torchvision's: convolutions have biases, a stage's stride lies in the first convolution of its first block
    instead of the second, and batch norms add 1.001e-5. Preprocessing is MONAI's ``RadImageNetPerceptualSimilarity``:
    values in [0, 1] as blue, green, red, less ImageNet's means; 224x224 as in training.

    Args:
        weights: The local file; see ``LocalNetwork``.
    """

    score_name = "frechet_radimagenet_keras_resnet50"
    dimensions = 2048
    title = "RadImageNet ResNet-50, converted from Keras"
    preprocessing = Preprocessing(size=224, mean=(0.406, 0.456, 0.485), bgr=True)

    def build(self, state: dict[str, Tensor]) -> nn.Module:
        """Return torchvision's ResNet-50 without its head, made into Keras'."""
        if "conv1.bias" not in state:
            raise ExtractorError(
                f"{self.weights} is no conversion of RadImageNet's ResNet-50 from Keras: conv1.bias is not in it; for "
                f"the authors' ResNet50.pt name the class {__name__}.RadImageNetResNet50"
            )
        network = _headless_resnet50()
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d):
                module.bias = nn.Parameter(module.weight.new_zeros(module.out_channels))
            elif isinstance(module, nn.BatchNorm2d):
                module.eps = 1.001e-5
            if name.endswith(".0.conv1"):
                second = network.get_submodule(name.replace("conv1", "conv2"))
                module.stride, second.stride = second.stride, module.stride
        return self.fill(network, state)


class TorchXRayVisionDenseNet121(LocalNetwork):
    """torchxrayvision's DenseNet-121 (Cohen et al. 2022, arXiv:2111.00595), 1,024 pooled features, ``features2`` there.

    Trained on findings of chest x-rays; ``densenet121-res224-all`` on NIH, PadChest, CheXpert, MIMIC-CXR, Google, OpenI
    and RSNA. The published files, such as ``nih-pc-chex-mimic_ch-google-openi-kaggle-densenet121-d121-tw-lr001-rot45-
    tr15-sc15-seed0-best.pt``, are pickled networks, which would run code to be read: the refusal says how to convert
    them. Preprocessing is that of its README: one channel, black at -1024 and white at 1024, the square in the middle,
    224x224.

    Args:
        weights: The local file with the state dict; see ``LocalNetwork``.
    """

    score_name = "frechet_torchxrayvision_densenet121"
    dimensions = 1024
    title = "torchxrayvision DenseNet-121"
    preprocessing = Preprocessing(size=224, channels=1, scale=(-1024.0, 1024.0), crop=True)

    def build(self, state: dict[str, Tensor]) -> nn.Module:
        """Return torchvision's DenseNet-121 of one channel without its head; the names are the same."""
        from torchvision import models

        network = models.densenet121(weights=None)
        network.features.conv0 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        network.classifier = nn.Identity()
        of_the_head = ("classifier.weight", "classifier.bias", "op_threshs")
        return self.fill(network, {name: tensor for name, tensor in state.items() if name not in of_the_head})


def _headless_resnet50() -> nn.Module:
    from torchvision import models

    network = models.resnet50(weights=None)
    network.fc = nn.Identity()
    return network
