"""What decides the bits of the weights besides the configuration, and a word when a resumed run has another.

``versions.json`` says it for the newest part of a run, with the clock that the part begins at, and under ``before`` for
the parts that came earlier. A checkpoint was written by the newest part that begins before its clock.
"""

import json
import logging
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch

from callbacks.files import training_goes_on, write_atomically
from lightning_modules.protocols import Clocked

log = logging.getLogger(__name__)

Part = dict[str, Any]
# What is compared, and what to call it. Other libraries make pixels of files, which a checkpoint's fingerprint holds.
DECIDES_BITS = {
    "threads": "threads (OMP_NUM_THREADS)",
    "processes": "processes (trainer.devices x trainer.num_nodes)",
    "device": "device",
    "deterministic": "trainer.deterministic",
    "processor": "processor",
    "instructions": "instructions",
    "cudnn": "cudnn",
    **{package: package for package in ("mirage-gan", "torch", "lightning", "monai", "numpy")},
}
BESIDES_VECTORS = ("amx", "avx512_bf16", "avx512_fp16")  # instructions that oneDNN chooses its sums by


class EnvironmentRecord(L.Callback):
    """Records what computes the weights when training starts, and warns if it is not what computed the checkpoint's.

    Lightning sets the number of threads when its processes have started, so nothing is known before.

    Args:
        path: The run's ``versions.json``.
        versions: Returns the versions of libraries and code.
    """

    def __init__(self, path: Path, versions: Callable[[], Part]) -> None:
        self.path, self.versions = path, versions

    def on_train_start(self, trainer: L.Trainer, pl_module: Clocked) -> None:
        """Compare and record; the first process speaks for all."""
        if not trainer.is_global_zero:
            return
        now = {**self.versions(), **present(trainer)}
        if differing := record(self.path, pl_module.images_seen, now):
            log.warning(
                "what computes is not what computed the checkpoint at images_seen=%d; the run goes on, but its weights "
                "may not be those of an uninterrupted run to the bit: %s",
                pl_module.images_seen,
                "; ".join(differing),
            )


def record(path: Path, clock: int, now: Part) -> list[str]:
    """Record what computes from a clock on.

    Args:
        path: The run's ``versions.json``.
        clock: Images seen of the checkpoint that the run goes on from, 0 for a new run.
        now: What computes.

    Returns:
        "name: was X, is Y" for what computed the checkpoint differently; what its part does not say is not compared.
    """
    before = [part for part in _parts(path) if part["from_images_seen"] < clock]
    last = before[-1] if before else {}
    newest = {**now, "from_images_seen": clock}
    if last == {**newest, "from_images_seen": last.get("from_images_seen")}:  # it goes on
        newest = before.pop()
    text = json.dumps({**newest, "before": before}, indent=2) + "\n"
    with training_goes_on(path):
        write_atomically(path, lambda file: file.write(text.encode()))
    return [
        f"{name}: was {last[key]!r:.80}, is {now[key]!r:.80}"
        for key, name in DECIDES_BITS.items()
        if key in last and key in now and last[key] != now[key]
    ]


def present(trainer: L.Trainer) -> Part:
    """Return what computes now, besides libraries and code."""
    device = trainer.strategy.root_device
    on_gpu = device.type == "cuda"
    return {
        "threads": torch.get_num_threads(),
        "processes": trainer.world_size,
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        **_processor(),
        **({"cudnn": torch.backends.cudnn.version()} if on_gpu else {}),
    }


def _processor() -> Part:
    """Return the processor's model, and the instructions that torch and oneDNN choose their sums by."""
    file = Path("/proc/cpuinfo")  # Linux on x86; elsewhere less is known
    text = file.read_text() if file.is_file() else ""
    said = dict(re.findall(r"(?m)^([^:\n]+?)\s*: *(.*)$", text))
    numbers = [f"{key} {said[key]}" for key in ("cpu family", "model", "stepping") if key in said]
    special = [flag for flag in said.get("flags", "").split() if flag.startswith(BESIDES_VECTORS)]
    return {
        "processor": ", ".join([said.get("model name", platform.machine()), *numbers]),
        "instructions": " ".join([torch.backends.cpu.get_cpu_capability(), *sorted(special)]),
    }


def _parts(path: Path) -> list[Part]:
    """Return the parts of a run in their order; a file of an earlier version says less, a stranger's anything."""
    try:
        newest = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return []
    before = newest.pop("before", []) if isinstance(newest, dict) else []
    parts = [*before, newest] if isinstance(before, list) else [newest]
    return [{**part, "from_images_seen": _clock(part)} for part in parts if isinstance(part, dict)]


def _clock(part: Part) -> int:
    clock = part.get("from_images_seen")
    return clock if isinstance(clock, int) else 0
