"""A generator as a package of medigan (https://github.com/RichardObi/medigan): a folder with ``generate`` and metadata.

medigan unpacks or copies the folder, imports it, and calls ``generate``; see ``medigan_entry.py``.
"""

import re
from pathlib import Path
from typing import Any

from lightning_modules.networks.exported import WEIGHTS

METADATA, ENTRY = "metadata.json", "__init__.py"
_ID_LENGTHS = 13, 30  # characters that medigan allows
LOADING = """\
This folder is a model package of medigan; `metadata.json` is its entry. The first five digits of the model's id are
assigned when it is contributed. Try it with medigan, where this folder's name is FOLDER:

```python
from medigan import Generators

generators, model = Generators(), "MODEL"
generators.add_model_contributor(model, "PATH/FOLDER/__init__.py")
generators.add_metadata_from_file(model, "PATH/FOLDER/metadata.json")
generators.test_model(model)
images = generators.generate(model, num_samples=16, save_images=False, seed=1)  # SHAPE, 8 bits
```"""


def entry() -> bytes:
    """Return ``__init__.py``."""
    return Path(__file__).with_name("medigan_entry.py").read_bytes()


def model_id(description: dict[str, Any]) -> str:
    """Return an id in medigan's form NNNNN_TYPE_DATA, with zeros for the number that is to be assigned."""
    shortest, longest = _ID_LENGTHS
    words = f"00000_{description['name']}"
    if len(words) < shortest:
        words = f"00000_{description['family']}_{description['name']}"
    return re.sub(r"[^A-Z0-9]+", "_", words.upper())[:longest]


def metadata(description: dict[str, Any], package: str) -> dict[str, Any]:
    """Return the entry of the model, in the form of medigan's template. What a run does not record stays empty.

    Args:
        description: What ``generator.json`` says.
        package: Name of the folder.
    """
    image, said = description["image"], description["intensity"]
    name, _, suffix = WEIGHTS.partition(".")
    return {
        model_id(description): {
            "execution": {
                "package_name": package,
                "package_link": "",  # whoever publishes it knows where
                "model_name": name,
                "extension": f".{suffix}",
                "image_size": [image["height"], image["width"]],
                "dependencies": ["numpy", "torch", "pillow", "safetensors"],
                "generate_method": {
                    "name": "generate",
                    "args": {
                        "base": ["model_file", "num_samples", "output_path", "save_images"],
                        "custom": {"seed": 0, "truncation": 1.0},
                    },
                },
            },
            "selection": {
                "performance": {"SSIM": None, "MSE": None, "NSME": None, "PSNR": None, "IS": None, "FID": None},
                "use_cases": [],
                "organ": [],
                "modality": [],
                "vendors": [],
                "centres": [],
                "function": ["noise to image", "image generation", "unconditional generation", "data augmentation"],
                "condition": [],
                "dataset": [description["data_set"]] if description["data_set"] else [],
                "augmentations": [],
                "generates": ["synthetic images"],
                "height": image["height"],
                "width": image["width"],
                "depth": None,
                "type": description["family"],
                "license": description["licence"],
                "dataset_type": "",
                "privacy_preservation": None,
                "tags": [f"{image['height']}x{image['width']}", "Mirage"],
                "year": None,
            },
            "description": {
                "title": f"{description['family']} of {description['name']}",
                "provided_date": "",
                "trained_date": "",
                "provided_after_epoch": None,
                "version": "0.1.0",
                "published": None,
                "doi": [],
                "comment": f"{description['notice']} 0 to 255 stand for {said['low']:g} to {said['high']:g} "
                f"{said['unit']} ({said['meaning']}).",
            },
        }
    }
