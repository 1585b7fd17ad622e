"""A generator as a MONAI bundle: https://docs.monai.io/en/latest/mb_specification.html.

The bundle brings the few modules of its network, as the bundles of the model zoo do, so that it runs with MONAI alone.
"""

import io
from importlib.metadata import version
from typing import Any

import torch

from datamodules.writing.writers import NOTICE
from lightning_modules.networks.exported import ExportedGenerator

METADATA, INFERENCE = "configs/metadata.json", "configs/inference.json"
WEIGHTS, ONNX = "models/model.pt", "models/model.onnx"
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
LOADING = """\
In this folder, with MONAI and Pillow, but neither Mirage nor a network (the command also wants the package fire):

```
python -m monai.bundle run --config_file configs/inference.json --num_samples 64 --seed 1
```

writes 8-bit PNG files to `eval/`. Values, one image after the other:

```python
from monai.bundle import ConfigParser

bundle = ConfigParser.load_config_file("configs/inference.json")
parser = ConfigParser({**bundle, "num_samples": 16})
parser.get_parsed_content("initialize")
images = parser.get_parsed_content("images")  # SHAPE in -1 to 1
```"""


def weights_of(generator: ExportedGenerator) -> bytes:
    """Return ``models/model.pt``: the state dict of ``network_def``, which ``torch.load`` reads with weights_only."""
    buffer = io.BytesIO()
    torch.save({name: tensor.cpu().contiguous() for name, tensor in generator.state_dict().items()}, buffer)
    return buffer.getvalue()


def inference(description: dict[str, Any]) -> dict[str, Any]:
    """Return ``configs/inference.json``: images of a seed's list, the same as ``python -m experiments.generate`` makes.

    Args:
        description: What ``generator.json`` of an export says.
    """
    latents, labels = description["latents"], description.get("labels")
    return {
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "output_dir": "$@bundle_root + '/eval'",
        "num_samples": 16,
        "seed": 0,
        "truncation": 1.0,
        "network_def": {
            "_target_": "lightning_modules.networks.exported.build",
            "network": description["network"],
            "prior": latents["prior"],
            **({"classes": labels["classes"], "label_rows": labels["rows"]} if labels else {}),
        },
        "network": "$@network_def.to(@device)",
        "images": "$@network.sample(@num_samples, @truncation, @seed)",
        "save": {
            "_target_": "SaveImage",
            "output_dir": "@output_dir",
            "output_postfix": "",
            "output_ext": ".png",
            "output_dtype": "$np.uint8",
            "resample": False,
            "separate_folder": False,
            "print_log": False,
        },
        "initialize": ["$@network.load_state_dict(torch.load(@ckpt_path, map_location=@device, weights_only=True))"],
        # The nearest of 256 grey levels, as generate writes them; MONAI counts columns first.
        "levels": "$((@images.cpu() + 1.0) * 127.5).round().mT",
        "run": ["$[@save(image, {'filename_or_obj': f'synthetic_{i:06d}'}) for i, image in enumerate(@levels)]"],
    }


def metadata(description: dict[str, Any], task: str) -> dict[str, Any]:
    """Return ``configs/metadata.json``, which the schema of MONAI's bundles accepts.

    Args:
        description: What ``generator.json`` of an export says; it is kept whole under "mirage".
        task: What the generator is for, in a sentence.
    """
    image, latents, intensity = description["image"], description["latents"], description["intensity"]
    low, high = {"normal": ([], []), "uniform": ([-1.0], [1.0]), "truncated_normal": ([-2.0], [2.0])}[latents["prior"]]
    channels = {str(i): "image" if image["channels"] == 1 else f"channel {i}" for i in range(image["channels"])}
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"pillow": version("pillow")},
        "name": description["name"],
        "task": task,
        "description": f"{NOTICE} {description['family']} of run {description['run']}. Values in -1 to 1 stand for "
        f"{intensity['low']:g} to {intensity['high']:g} {intensity['unit']} ({intensity['meaning']}).",
        "authors": "not recorded",
        "copyright": f"Weights: {description['licence']}. Code in lightning_modules/: Mirage, Apache-2.0",
        "intended_use": "Research on synthetic images. Not for diagnosis or any clinical decision.",
        "data_source": str(description["data_set"]),
        "network_data_format": {
            "inputs": {
                "latent": {
                    "type": "tuples",
                    "format": "latent",
                    "num_channels": latents["length"],
                    "spatial_shape": [],
                    "dtype": "float32",
                    "value_range": [*low, *high],
                    "is_patch_data": False,
                    "channel_def": {},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "magnitude",
                    "num_channels": image["channels"],
                    "spatial_shape": [image["height"], image["width"]],
                    "dtype": "float32",
                    "value_range": [image["low"], image["high"]],
                    "is_patch_data": False,
                    "channel_def": channels,
                }
            },
        },
        "mirage": description,
    }
