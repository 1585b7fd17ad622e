"""Features of the vision transformer ViT-B/14 as DINOv2 trained it: on photographs, or on chest x-rays (RAD-DINO)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.metrics.local_weights import IMAGENET_MEAN, IMAGENET_STD, LocalNetwork, Preprocessing

_PATCH, _PATCHES = 14, 37  # pixels of a patch, patches a side that positions were learned for
# Names of transformers' Dinov2Model, and timm's for them, which are those of DINOv2's own code.
_NAMES = (
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.", ""),
    ("encoder.layer.", "blocks."),
    (".attention.output.dense.", ".attn.proj."),
    (".lambda1", ".gamma"),
    (".layer_scale", ".ls"),
    ("layernorm.", "norm."),
)


class DINOv2(LocalNetwork):
    """DINOv2's ViT-B/14 (Oquab et al. 2024, arXiv:2304.07193), the 768 numbers of its class token.

    Trained without labels on 142 million photographs. The file is ``dinov2_vitb14_pretrain.pth`` of DINOv2's repository
    (SHA-256 0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73), or ``model.safetensors`` of
    facebook/dinov2-base. The network is timm's ``vit_base_patch14_dinov2``. Preprocessing is that of the Frechet
    distance of Stein et al. (2023, arXiv:2306.04675), who took the larger ViT-L/14: bicubic to 224x224, ImageNet's mean
    and standard deviation.

    Args:
        weights: The local file; see ``LocalNetwork``.
    """

    score_name = "frechet_dinov2_vitb14"
    dimensions = 768
    title = "DINOv2 ViT-B/14, class token"
    preprocessing = Preprocessing(size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD, resize="bicubic")

    def build(self, state: dict[str, Tensor]) -> nn.Module:
        """Return the transformer, with positions for 16x16 patches."""
        return _transformer(self, state)


class RADDINO(LocalNetwork):
    """RAD-DINO (Pérez-García et al. 2025, doi:10.1038/s42256-024-00965-w), the 768 numbers of its class token.

    DINOv2's ViT-B/14 trained on, without labels, with 882,775 chest x-rays of five public data sets. The file
    is ``model.safetensors`` of microsoft/rad-dino (SHA-256
    dbfb9f54459c38773505de64a6ab7807bdcb392610fe1e697166342e43fb91ae), or ``backbone_compatible.safetensors`` there. The
    network is timm's ``vit_base_patch14_dinov2``. Preprocessing is that of its ``preprocessor_config.json``: the square
    in the middle, bicubic to 518x518, its own mean and standard deviation.

    Args:
        weights: The local file; see ``LocalNetwork``.
    """

    score_name = "frechet_rad_dino"
    dimensions = 768
    title = "RAD-DINO, class token"
    preprocessing = Preprocessing(size=518, mean=(0.5307,), std=(0.2583,), crop=True, resize="bicubic")

    def build(self, state: dict[str, Tensor]) -> nn.Module:
        """Return the transformer."""
        return _transformer(self, state)


def _transformer(extractor: LocalNetwork, state: dict[str, Tensor]) -> nn.Module:
    import timm  # takes two seconds

    size = extractor.preprocessing.size
    network = timm.create_model("vit_base_patch14_dinov2", pretrained=False, img_size=size, num_classes=0)
    state = _in_timms_names(state)
    state.pop("mask_token", None)  # of the training alone
    if "pos_embed" in state:
        state["pos_embed"] = _positions(state["pos_embed"], size // _PATCH)
    return extractor.fill(network, state)


def _in_timms_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for old, new in _NAMES:
            name = name.replace(old, new)
        renamed[name] = tensor
    for name in [name for name in renamed if ".attention.attention.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in renamed for part in parts):
            renamed[name.replace(".attention.attention.query.", ".attn.qkv.")] = torch.cat(
                [renamed.pop(part) for part in parts]
            )
    return renamed


def _positions(learned: Tensor, side: int) -> Tensor:
    """Bring position embeddings (1, 1 + 37 * 37, D) to side x side patches as DINOv2's own code does.

    It adds 0.1 to the side when it computes the scale, and is not antialiased: timm antialiases and transformers leaves
    the 0.1 out, so that one file has other features there (findings/dinov2_positions.sh).
    """
    if side == _PATCHES or learned.ndim != 3 or learned.shape[1] != 1 + _PATCHES**2:
        return learned  # a wrong shape is named when the weights are loaded
    patches = learned[:, 1:].unflatten(1, (_PATCHES, _PATCHES)).permute(0, 3, 1, 2).float()
    scale = (side + 0.1) / _PATCHES
    patches = F.interpolate(patches, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([learned[:, :1], patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
