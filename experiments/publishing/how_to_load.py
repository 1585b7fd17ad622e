"""How an export is loaded, as lines of Python for its model card."""

from typing import Any

# In words, and as a draw with what it needs besides numpy.
PRIORS = {
    "normal": ("standard normal", "numpy.random.default_rng(0).standard_normal(size)", ""),
    "uniform": ("uniform in -1 to 1", "numpy.random.default_rng(0).uniform(-1.0, 1.0, size)", ""),
    "truncated_normal": (
        "standard normal cut to -2 to 2",
        "scipy.stats.truncnorm.rvs(-2.0, 2.0, size=size, random_state=0)",
        ", scipy.stats",
    ),
}


def loading_of(description: dict[str, Any]) -> str:
    """Return how ``generator.safetensors`` and ``generator.onnx`` are used."""
    image, intensity = description["image"], description["intensity"]
    low, high = intensity["low"], intensity["high"]
    shape = f"{image['channels']}, {image['height']}, {image['width']}"
    labels = description.get("labels", {"classes": []})
    classes = [" ".join(str(name).replace("`", "'").split()) for name in labels["classes"]]
    lines = [
        "```python",
        *(["import torch", ""] if classes else []),
        "from lightning_modules.networks.exported import load_generator",
        "",
        'generator = load_generator("FOLDER")  # this folder; needs Mirage and torch, not Lightning',
        f"images = generator.sample(16, seed=0)  # (16, {shape}) in -1 to 1",
        *([f"labels = torch.eye({len(classes)})[0]  # {classes[0]}, of {', '.join(classes)}"] if classes else []),
        *(["images = generator.sample(16, seed=0, labels=labels)"] if classes else []),
        f"values = {low!r} + (images + 1.0) / 2.0 * {high - low!r}  # {unit_of(intensity)}",
        "```",
    ]
    if "generator.onnx" in description["files"]:
        latents = description["latents"]
        inputs = '{"latents": latents, "labels": labels}' if classes else '{"latents": latents}'
        _, draw, needed = PRIORS[latents["prior"]]
        lines += [
            "",
            "Or without Mirage and torch:",
            "",
            "```python",
            f"import numpy, onnxruntime{needed}",
            "",
            'session = onnxruntime.InferenceSession("FOLDER/generator.onnx")',
            f"size = (16, {latents['length']})",
            f"latents = {draw}.astype(numpy.float32)",
            *([f"labels = numpy.eye({len(classes)}, dtype=numpy.float32)[[0] * 16]"] if classes else []),
            f"images = session.run(None, {inputs})[0]",
            "```",
        ]
    return "\n".join(lines)


def unit_of(intensity: dict[str, Any]) -> str:
    """Return the unit of values, for a comment."""
    return " ".join(str(intensity["unit"]).replace("`", "'").split())


def _scaled(shape: str, intensity: dict[str, Any]) -> list[str]:
    """Return lines that make sources of values whose range is known."""
    low, high = intensity["low"], intensity["high"]
    return [
        f"source_values = torch.full(({shape}), {low!r})  # yours, {low:g} to {high:g} {unit_of(intensity)}",
        f"sources = ((source_values - {low!r}) / {high - low!r} * 2.0 - 1.0).clamp(-1.0, 1.0)",
    ]


def loading_of_translator(description: dict[str, Any]) -> str:
    """Return how ``generator.safetensors`` and ``generator.onnx`` of a translator are used."""
    image, source, intensity = description["image"], description["source"], description["intensity"]
    size, low, high = f"{image['height']}, {image['width']}", intensity["low"], intensity["high"]
    shape, values = f"4, {source['channels']}, {size}", source["intensity"]
    lines = [
        "```python",
        "import torch",
        "",
        "from lightning_modules.networks.exported import load_translator",
        "",
        'translator = load_translator("FOLDER")  # this folder; needs Mirage and torch, not Lightning',
        *(_scaled(shape, values) if values else [f"sources = torch.zeros({shape})  # yours, in -1 to 1"]),
        f"images = translator.translate(sources, seed=0)  # (4, {image['channels']}, {size}) in -1 to 1",
        f"values = {low!r} + (images + 1.0) / 2.0 * {high - low!r}  # {unit_of(intensity)}",
        "```",
    ]
    if "generator.onnx" in description["files"]:
        lines += [
            "",
            f"Or without Mirage and torch, for images of {image['height']} x {image['width']} pixels:",
            "",
            "```python",
            "import numpy, onnxruntime",
            "",
            'session = onnxruntime.InferenceSession("FOLDER/generator.onnx")',
            f"sources = numpy.zeros(({shape}), dtype=numpy.float32)  # yours, in -1 to 1",
            'images = session.run(None, {"sources": sources})[0]',
            "```",
        ]
    return "\n".join(lines)
