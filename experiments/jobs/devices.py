"""How a machine is shared out among child runs."""

import logging
import os
from typing import Protocol

from experiments.configuration.errors import ConfigError
from experiments.configuration.redaction import STORAGE_VARIABLE

log = logging.getLogger(__name__)


class Shares(Protocol):
    """How a machine is shared out: so many runs at a time, so many processes each."""

    @property
    def parallel(self) -> int:
        """Runs at a time."""

    @property
    def devices_per_trial(self) -> int:
        """Processes of a run, each on a GPU of its own if there are any."""


def environment(shares: Shares, devices: str | None) -> dict[str, str]:
    """Return a run's environment: its share of GPUs and threads, and nothing of where a sweep is stored."""
    variables = dict(os.environ)
    variables.pop(STORAGE_VARIABLE, None)
    # As many threads as cores in every one of several runs wait for each other, many times slower.
    variables.setdefault("OMP_NUM_THREADS", str(threads_per_process(shares)))
    if devices is not None:
        variables["CUDA_VISIBLE_DEVICES"] = devices
    return variables


def threads_per_process(shares: Shares) -> int:
    """Return the share of this machine's cores that one process of a run gets."""
    return max(1, len(os.sched_getaffinity(0)) // (shares.parallel * shares.devices_per_trial))


def device_slots(shares: Shares) -> list[str | None]:
    """Return CUDA_VISIBLE_DEVICES of every run that goes on at a time, or None where there is no GPU.

    With fewer GPUs than the runs need, they share them in turn.

    Raises:
        ConfigError: If one run alone needs more GPUs than there are.
    """
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())] if named is None else []
    if not visible:
        return [None] * shares.parallel
    each = shares.devices_per_trial
    if each > len(visible):
        raise ConfigError([f"devices_per_trial={each}: this machine has {len(visible)} GPUs ({','.join(visible)})"])
    if each * shares.parallel > len(visible):
        log.warning("%d runs of %d GPUs share the %d that there are", shares.parallel, each, len(visible))
    return [",".join(visible[(slot * each + i) % len(visible)] for i in range(each)) for slot in range(shares.parallel)]
