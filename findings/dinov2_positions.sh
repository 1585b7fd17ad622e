#!/usr/bin/env bash
# DINOv2's ViT-B/14 at 224x224, one set of weights, two libraries. timm 1.0.31, transformers 5.24.0, torch 2.14.1.
#
# Expected: timm's vit_base_patch14_dinov2 and transformers' Dinov2Model give one class token, as they do at 518x518.
# Seen: position embeddings are learned for 37x37 patches and brought to 16x16 when the network is built (timm) or run
# (transformers): timm's bicubic is antialiased, transformers' is not, and DINOv2's own code, not antialiased, adds 0.1
# to the 16 when it computes the scale. At 518x518 all three are one network; at 224x224 they are three.
# (The embeddings are random here, the published ones are not at hand: how far apart depends on them.)
# So: Frechet distances of DINOv2 features at 224x224 are comparable within one library only. Say which, or bring the
# positions to size as the published code does.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 timm==1.0.31 \
  transformers==5.24.0
cat >"$folder/look.py" <<'PY'
import timm
import torch
from torch.nn.functional import interpolate
from transformers import Dinov2Config, Dinov2Model

NAMES = (
    ("patch_embeddings.projection", "patch_embed.proj"), ("position_embeddings", "pos_embed"), ("embeddings.", ""),
    ("encoder.layer", "blocks"), ("attention.o_proj", "attn.proj"), ("lambda1", "gamma"),
    ("layer_scale", "ls"), ("layernorm", "norm"),
)


def in_timms_names(state):
    renamed = {}
    for name, tensor in state.items():
        for old, new in NAMES:
            name = name.replace(old, new)
        renamed[name] = tensor
    for name in [name for name in renamed if ".q_proj." in name]:
        parts = [renamed.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        renamed[name.replace(".attention.q_proj.", ".attn.qkv.")] = torch.cat(parts)
    del renamed["mask_token"]
    return renamed


def dinov2s_own(learned, side):
    patches = learned[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    patches = interpolate(patches, scale_factor=((side + 0.1) / 37,) * 2, mode="bicubic")
    return torch.cat([learned[:, :1], patches.permute(0, 2, 3, 1).flatten(1, 2)], 1)


torch.manual_seed(0)
reference = Dinov2Model(Dinov2Config(image_size=518)).eval()
for name, value in reference.named_parameters():
    value.data.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.05)
state = in_timms_names(reference.state_dict())
for size in (518, 224):
    images = torch.randn(2, 3, size, size)
    timms = timm.create_model("vit_base_patch14_dinov2", img_size=size, num_classes=0).eval()
    resized = dict(state)
    if size != 518:
        resized["pos_embed"] = timm.layers.resample_abs_pos_embed(state["pos_embed"], (size // 14,) * 2)
    timms.load_state_dict(resized)
    own = timm.create_model("vit_base_patch14_dinov2", img_size=size, num_classes=0).eval()
    own.load_state_dict({**state, "pos_embed": dinov2s_own(state["pos_embed"], size // 14)} if size != 518 else state)
    with torch.no_grad():
        of = {
            "timm": timms(images), "transformers": reference(pixel_values=images).pooler_output, "DINOv2": own(images)
        }
    for one, other in (("timm", "transformers"), ("timm", "DINOv2"), ("transformers", "DINOv2")):
        off = float((of[one] - of[other]).abs().mean() / of[other].std())
        said = "the same" if off < 1e-4 else "other features" if off > 1e-3 else off
        print(f"{size}x{size}, {one} and {other}: {said}")
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/look.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
518x518, timm and transformers: the same
518x518, timm and DINOv2: the same
518x518, transformers and DINOv2: the same
224x224, timm and transformers: other features
224x224, timm and DINOv2: other features
224x224, transformers and DINOv2: other features
SEEN
