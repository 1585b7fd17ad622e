from functools import partial

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from lightning_modules.metrics.dinov2 import RADDINO, DINOv2
from lightning_modules.metrics.features import ExtractorError

DEPTH = 12
IMAGES = torch.rand(2, 1, 100, 90, generator=torch.Generator().manual_seed(1)) * 2 - 1


def shapes_of_dinov2(width):
    """Of DINOv2's own files, such as dinov2_vitb14_pretrain.pth, and of RAD-DINO's backbone_compatible.safetensors."""
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1370, width), "mask_token": (1, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 14, 14), "patch_embed.proj.bias": (width,)}
    for block in range(DEPTH):
        linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        for name, shape in linear.items():
            shapes |= {f"blocks.{block}.{name}.weight": shape, f"blocks.{block}.{name}.bias": shape[:1]}
        for name in ("norm1.weight", "norm1.bias", "ls1.gamma", "norm2.weight", "norm2.bias", "ls2.gamma"):
            shapes[f"blocks.{block}.{name}"] = (width,)
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def random_weights(shapes):
    """Weights under which the class token depends on every block and patch."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        spread = torch.Size(shape[1:]).numel() ** -0.5 if name.endswith("weight") and len(shape) > 1 else 0.5
        state[name] = torch.randn(shape, generator=generator) * spread
        if "norm" in name and "weight" in name:
            state[name] += 1.0
    return state


def as_transformers_names(state):
    """The names of facebook/dinov2-base and microsoft/rad-dino (transformers' Dinov2Model)."""
    named = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": state["mask_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    for part in ("weight", "bias"):
        named[f"embeddings.patch_embeddings.projection.{part}"] = state[f"patch_embed.proj.{part}"]
        for block in range(DEPTH):
            old, new = f"blocks.{block}", f"encoder.layer.{block}"
            parts = zip(("query", "key", "value"), state[f"{old}.attn.qkv.{part}"].chunk(3), strict=True)
            named |= {f"{new}.attention.attention.{name}.{part}": value.clone() for name, value in parts}
            named[f"{new}.attention.output.dense.{part}"] = state[f"{old}.attn.proj.{part}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                named[f"{new}.{name}.{part}"] = state[f"{old}.{name}.{part}"]
            for number in (1, 2):
                named[f"{new}.layer_scale{number}.lambda1"] = state[f"{old}.ls{number}.gamma"]
    return named


def class_token(state, x, heads, positions):
    """The equations of a vision transformer with layer scale, from weights in transformers' names."""

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, x):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def split(x):
        return x.unflatten(2, (heads, -1)).transpose(1, 2)

    projection = "embeddings.patch_embeddings.projection"
    x = F.conv2d(x, state[f"{projection}.weight"], state[f"{projection}.bias"], 14).flatten(2).transpose(1, 2)
    x = torch.cat([state["embeddings.cls_token"].expand(len(x), -1, -1), x], dim=1) + positions
    for block in range(DEPTH):
        name = f"encoder.layer.{block}"
        y = norm(f"{name}.norm1", x)
        query, key, value = (
            split(linear(f"{name}.attention.attention.{part}", y)) for part in ("query", "key", "value")
        )
        weights = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1)
        y = linear(f"{name}.attention.output.dense", (weights @ value).transpose(1, 2).flatten(2))
        x = x + state[f"{name}.layer_scale1.lambda1"] * y
        y = linear(f"{name}.mlp.fc2", F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x))))
        x = x + state[f"{name}.layer_scale2.lambda1"] * y
    return norm("layernorm", x)[:, 0]


@pytest.fixture
def narrow(monkeypatch):
    """All twelve blocks of ViT-B/14 at a thirty-second of its width."""
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, embed_dim=24, num_heads=2))
    return random_weights(shapes_of_dinov2(24))


def loaded(cls, state, path):
    save_file(state, path)
    extractor = cls(str(path))
    extractor.prepare()
    extractor.load()
    return extractor.eval()


def test_rad_dino_is_the_equations(narrow, tmp_path):
    state = as_transformers_names(narrow)
    extractor = loaded(RADDINO, state, tmp_path / "model.safetensors")
    square = F.interpolate((IMAGES[:, :, 5:95] + 1) / 2, (518, 518), mode="bicubic", antialias=True).clamp(0, 1)
    x = ((square - 0.5307) / 0.2583).expand(-1, 3, -1, -1)
    expected = class_token(state, x, 2, state["embeddings.position_embeddings"])
    assert expected.std() > 0.1
    torch.testing.assert_close(extractor(IMAGES), expected, rtol=1e-3, atol=1e-4)
    other = loaded(RADDINO, narrow, tmp_path / "backbone_compatible.safetensors")
    assert torch.equal(extractor(IMAGES[:1]), other(IMAGES[:1]))
    assert "518x518" in extractor.identity()["preprocessing"] and extractor.score_name == "frechet_rad_dino"


def positions_as_dinov2(learned):
    """``interpolate_pos_encoding`` of dinov2/models/vision_transformer.py for 16x16 patches, as published."""
    scale = float(16 + 0.1) / 37
    patches = learned[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, mode="bicubic", antialias=False, scale_factor=(scale, scale))
    assert patches.shape[-2:] == (16, 16)
    return torch.cat((learned[:, :1], patches.permute(0, 2, 3, 1).reshape(1, 256, -1)), dim=1)


def test_dinov2_is_the_equations_with_its_own_positions(narrow, tmp_path):
    state = as_transformers_names(narrow)
    extractor = loaded(DINOv2, narrow, tmp_path / "dinov2_vitb14_pretrain.safetensors")
    resized = F.interpolate((IMAGES + 1) / 2, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = (resized - mean) / std
    expected = class_token(state, pixels, 2, positions_as_dinov2(narrow["pos_embed"]))
    torch.testing.assert_close(extractor(IMAGES), expected, rtol=1e-3, atol=1e-4)
    by_timm = timm.layers.resample_abs_pos_embed(narrow["pos_embed"], (16, 16), num_prefix_tokens=1)
    by_transformers = timm.layers.resample_abs_pos_embed(narrow["pos_embed"], (16, 16), antialias=False)
    for positions in (by_timm, by_transformers):
        assert (class_token(state, pixels, 2, positions) - expected).abs().max() > 0.01


def test_other_transformers_are_refused_by_name(narrow, tmp_path):
    with_registers = narrow | {"register_tokens": torch.zeros(1, 4, 24)}
    small = narrow | {"pos_embed": torch.zeros(1, 257, 24)}
    named = as_transformers_names(narrow)
    del named["encoder.layer.3.attention.attention.key.weight"]
    for state, message in (
        (with_registers, "is no state dict of RAD-DINO, class token: it has too many register_tokens"),
        (small, "has other shapes of pos_embed"),
        (named, r"misses blocks\.3\.attn\.qkv\.weight"),
        ({"weight": torch.zeros(1)}, "misses blocks.0"),
    ):
        with pytest.raises(ExtractorError, match=message):
            loaded(RADDINO, state, tmp_path / "other.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "naming"), [(DINOv2, dict), (RADDINO, as_transformers_names)])
def test_the_published_shapes_fit(cls, naming, tmp_path):
    """ViT-B/14 as published: 86,580,480 numbers, 346,321,920 of the 346,345,912 bytes of RAD-DINO's file."""
    state = naming(random_weights(shapes_of_dinov2(768)))
    assert sum(value.numel() for value in state.values()) == 86_580_480
    extractor = loaded(cls, state, tmp_path / "model.safetensors")
    features = extractor(IMAGES[:1])
    assert features.shape == (1, cls.dimensions) and features.isfinite().all()
