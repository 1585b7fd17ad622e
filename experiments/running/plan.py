"""What a run will need, measured on this device: ``python -m experiments.run NAME --plan [budget=60s]``.

Every stage is measured in a process of its own, so that one that does not fit takes nothing else down. The largest
comes first: it decides whether the run fits at all, and the others are quick.
"""

import math
import multiprocessing
import os
import resource
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from datamodules.files.errors import DataError
from experiments.configuration import objects
from experiments.configuration.errors import ConfigError
from experiments.configuration.experiment import experiment_of
from experiments.configuration.files import Node
from experiments.running import processes
from experiments.running.agreement import problems_of_shape, problems_of_sharing
from experiments.running.bare_step import bare_step
from experiments.running.parts import Parts, build, checked
from lightning_modules.protocols import Samples, can
from lightning_modules.schedules import Point
from lightning_modules.step import PhasedModule

GIB, GB = 2**30, 10**9
ADVICE_SECONDS = 60.0  # for measuring one stage after memory ran out
START_SECONDS = 20.0  # for a process to build its networks; not part of the budget
ADAM_BYTES = 12  # per trained parameter: gradient and two averages, float32


@dataclass
class Row:
    """One stage of the plan.

    Attributes:
        point: Where the stage begins.
        images: Images of the stage.
        batch: Images per device.
        found: What its process measured: "parameters" (trained by the stage), "work" (operations that the generator
            needs for one image), "seconds" (per image), "fixed" and "per_image" (bytes), "note".
    """

    point: Point
    images: int
    batch: int
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def memory(self) -> float | None:
        """Bytes at the peak with this batch; None if unknown."""
        return self.found["fixed"] + self.batch * self.found["per_image"] if "fixed" in self.found else None

    def largest_batch(self, available: float) -> int:
        """Return the largest batch that fits into so many bytes."""
        return max(0, int((available - self.found["fixed"]) / max(self.found["per_image"], 1.0)))


def plan(config: Node, budget_seconds: float) -> list[str]:
    """Measure an experiment's stages and return the plan as lines of text.

    Args:
        config: Plain, resolved values, from ``config.load``.
        budget_seconds: Time for measuring; stages that it does not suffice for are extrapolated and marked.

    Raises:
        ConfigError: With everything that is wrong with the configuration.
    """
    experiment = checked(config)
    parts = build(experiment)
    if problems := problems_of_shape(parts):
        raise ConfigError(problems)
    devices = processes.world_size(parts.settings, processes.external_launcher())
    gpu = processes.uses_gpu(parts.settings)
    # Processes on one CPU share its cores and its memory; every GPU has its own.
    share = 1 if gpu else processes.devices_per_machine(parts.settings)
    available = available_memory(gpu) / share
    rows = stages(parts, devices)
    _start_server()
    deadline = time.monotonic() + budget_seconds
    checkpointing: list[str] = []
    for row in tqdm(rows[::-1], desc="measuring", unit="stage", leave=False, disable=None):
        # Half of what is left for each: the largest stage may take most of the time, but not all of it.
        row.found = _in_child(config, row, gpu, share, available, (deadline - time.monotonic()) / 2)
        if row is rows[-1]:
            checkpointing = _checkpointing(config, row, gpu, share, available, (deadline - time.monotonic()) / 2)
    extrapolate(rows)
    per_device = torch.cuda.get_device_name() if gpu else f"{max(1, torch.get_num_threads() // share)} CPU threads"
    return [
        f"{experiment.name}: {devices} x {per_device}, {parts.settings.precision}, {available / GIB:.1f} GiB free",
        *table(rows, available),
        *checkpointing,
        *disk(parts),
    ]


def advice(config: Node, images_seen: int) -> str:
    """Return what the stage at a clock needs, measured, and what to lower if that is too much."""
    parts = build(experiment_of(config))
    devices = processes.world_size(parts.settings, processes.external_launcher())
    gpu = processes.uses_gpu(parts.settings)
    share = 1 if gpu else processes.devices_per_machine(parts.settings)
    available = available_memory(gpu) / share
    row = stages(parts, devices)[parts.schedule.at(images_seen).stage]
    _start_server()
    row.found = _in_child(config, row, gpu, share, available, ADVICE_SECONDS)
    batch_key = "schedule.batch_sizes" if "batch_sizes" in config["schedule"] else "schedule.batch_size"
    lower = f"lower {batch_key}"
    if "checkpoint_from" in objects.completed(config["module"]):
        lower += " or set module.checkpoint_from"
    if row.memory is None:
        return f"{lower}; --plan measures what each stage needs"
    height, width = row.point.resolution
    return (
        f"{height}x{width} with a batch of {row.batch} per device needs {row.memory / GIB:.2f} GiB, "
        f"{row.found['fixed'] / GIB:.2f} of them for any batch; {available / GIB:.2f} GiB are free, enough for "
        f"{row.largest_batch(available)}: {lower}"
    )


def seconds_of(text: str) -> float:
    """Return the seconds that "90", "90s", "5m" or "1h" mean.

    Raises:
        ConfigError: If it means none.
    """
    factor = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:])
    try:
        value = float(text[:-1]) * factor if factor else float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError([f"budget={text}: expected a time, e.g. 60s, 5m or 1h"])
    return value


def stages(parts: Parts, devices: int) -> list[Row]:
    """Return one row per stage, not measured yet.

    Raises:
        ConfigError: If a batch cannot be shared by the devices.
    """
    points = parts.schedule.stages()
    ends = [point.stage_start for point in points[1:]] + [parts.schedule.total_images]
    if problems := problems_of_sharing(parts.schedule, devices):
        raise ConfigError(problems)
    return [
        Row(point, end - point.stage_start, point.batch_size // devices)
        for point, end in zip(points, ends, strict=True)
    ]


def extrapolate(rows: list[Row]) -> None:
    """Give rows without a time that of the nearest measured one, in proportion to their work."""
    measured = [i for i, row in enumerate(rows) if "seconds" in row.found]
    for i, row in enumerate(rows):
        if i not in measured and measured and "work" in row.found:
            nearest = rows[min((abs(j - i), j) for j in measured)[1]].found
            row.found["seconds"] = nearest["seconds"] * row.found["work"] / nearest["work"]
            row.found["note"] = (row.found.get("note", "") + "; time extrapolated").lstrip("; ")


# Measuring --------------------------------------------------------------------------------------------------------


def _start_server() -> None:
    """Start the server that forks the processes; it imports everything once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    first = context.Process(target=int)
    first.start()
    first.join()


def _in_child(config: Node, row: Row, gpu: bool, share: int, available: float, seconds: float) -> dict[str, Any]:
    """Return what a process finds out about a stage until it ends, dies or has used up its time."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, config, row.point.stage_start, row.batch, gpu, share, available, seconds)
    child = context.Process(target=_measure, args=arguments, daemon=True)
    child.start()
    sender.close()
    found: dict[str, Any] = {}
    give_up = time.monotonic() + max(seconds, 0.0) + START_SECONDS
    try:
        while receiver.poll(max(0.0, give_up - time.monotonic())):
            found.update(receiver.recv())  # what is known so far
    except EOFError:
        pass
    late = child.is_alive() and time.monotonic() >= give_up
    if late:
        child.kill()
    child.join()
    if child.exitcode and not late and "seconds" not in found:
        found.setdefault("note", "ran out of memory" if child.exitcode == -9 else f"failed (exit {child.exitcode})")
    return found


def _forward(module: PhasedModule, point: Point) -> None:
    """Do a small part of a step, of a generator without a graph: a stage may not fit whose work is to be counted."""
    if can(module, Samples):
        module.sample(1, torch.zeros(1, len(module.classes)) if module.classes else None, ema=False)
        return
    for phase in module.phases():
        phase.losses(module.example_batch(1, point))


def _measure(
    sender: Connection,
    config: Node,
    clock: int,
    batch: int,
    gpu: bool,
    share: int,
    available: float,
    seconds: float,
) -> None:
    """Measure one stage; send each finding as soon as it is there."""
    parts = build(experiment_of(config))
    device = torch.device("cuda" if gpu else "cpu")
    module, point = parts.module.to(device), parts.schedule.at(clock)
    module.set_point(point)
    if share > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // share))
    with FlopCounterMode(display=False) as counter:
        _forward(module, point)
    sender.send({"work": counter.get_total_flops()})
    if seconds <= 0:
        return
    started, baseline = time.monotonic(), _memory_now(gpu)
    try:
        first = _timed_step(parts, point, 1, gpu)
        if first < seconds - (time.monotonic() - started):
            first = min(first, _timed_step(parts, point, 1, gpu))  # the first of all allocates and warms up
        trained = sum(p.numel() for p in module.parameters() if p.grad is not None)
        fixed = baseline + ADAM_BYTES * trained
        per_image = max(_memory_peak(gpu) - fixed, 0.0)
        note = "" if batch == 1 else "measured with batch 1"
        sender.send({"parameters": trained, "seconds": first, "fixed": fixed, "per_image": per_image, "note": note})
        left = seconds - (time.monotonic() - started)
        if batch > 1 and fixed + batch * per_image < available and batch * first < left:
            again = _timed_step(parts, point, batch, gpu)
            if again < seconds - (time.monotonic() - started):
                again = min(again, _timed_step(parts, point, batch, gpu))
            per_image = max(_memory_peak(gpu) - fixed, 0.0) / batch
            sender.send({"seconds": again / batch, "per_image": per_image, "note": ""})
    except (torch.OutOfMemoryError, MemoryError):
        sender.send({"note": "ran out of memory"})


def _timed_step(parts: Parts, point: Point, batch: int, gpu: bool) -> float:
    """Return the seconds of one step."""
    step = bare_step(parts.module, point, batch, parts.settings.precision)
    if gpu:
        step()  # kernels are chosen and compiled at first use
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _memory_now(gpu: bool) -> float:
    if gpu:
        return float(torch.cuda.memory_allocated())
    statm = Path("/proc/self/statm")  # Linux; elsewhere the peak so far, which a process that has done nothing is at
    return float(statm.read_text().split()[1]) * resource.getpagesize() if statm.is_file() else _memory_peak(gpu)


def _memory_peak(gpu: bool) -> float:
    if gpu:
        return float(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) if sys.platform == "darwin" else float(peak) * 1024


def available_memory(gpu: bool) -> float:
    """Return the bytes that a run on this device can have."""
    if gpu:
        return float(torch.cuda.mem_get_info()[0])
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():  # macOS: what is installed, for want of a figure of what is free
        return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    lines = meminfo.read_text().splitlines()
    free = {line.split(":")[0]: float(line.split()[1]) * 1024 for line in lines}
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(free["MemAvailable"], float("inf") if text == "max" else float(text))


# Showing ----------------------------------------------------------------------------------------------------------


def table(rows: list[Row], available: float) -> list[str]:
    """Return the plan's table; ``available`` is in bytes."""
    header = ("stage", "resolution", "images", "batch", "parameters", "s/1000 img", "memory", "ETA", "")
    lines = [_line(header)]
    total, complete = 0.0, True
    for row in rows:
        found, (height, width) = row.found, row.point.resolution
        seconds, memory, note = found.get("seconds"), row.memory, found.get("note", "")
        if memory is not None and memory > available:
            note = f"DOES NOT FIT; largest batch per device: {row.largest_batch(available)}. {note}".rstrip(". ")
        eta = None if seconds is None else seconds * row.images / (row.point.batch_size / row.batch)
        total, complete = total + (eta or 0.0), complete and eta is not None
        cells = (
            str(row.point.stage),
            f"{height}x{width}",
            f"{row.images:,}",
            str(row.batch),
            f"{found['parameters']:,}" if "parameters" in found else "?",
            "?" if seconds is None else _rounded(1000 * seconds / (row.point.batch_size / row.batch)),
            "?" if memory is None else f"{memory / GIB:.2f} GiB",
            "?" if eta is None else duration(eta),
            note,
        )
        lines.append(_line(cells))
    lines.append(f"in all {'' if complete else 'more than '}{duration(total)} of training, without scores and pictures")
    return lines


def duration(seconds: float) -> str:
    """Return a time as a person would say it."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def disk(parts: Parts) -> list[str]:
    """Return what the image cache will take, if the data is there."""
    data = parts.data
    try:
        data.check()
        count = len(data.records())
    except DataError as error:
        return [f"image cache: unknown, {error}"]
    sizes = data.cache_bytes(count)
    lines = [f"image cache in {data.cache_dir}: {sum(sizes.values()) / GB:.2f} GB for {count:,} images"]
    return lines + [f"  {height}x{width}: {size / GB:.3f} GB" for (height, width), size in sizes.items()]


def _checkpointing(config: Node, last: Row, gpu: bool, share: int, available: float, seconds: float) -> list[str]:
    """Return what computing activations anew would save in the last stage, where a family can do it."""
    can = "checkpoint_from" in objects.completed(config["module"])
    if not can or config["module"].get("checkpoint_from") is not None or last.memory is None or seconds <= 0:
        return []
    stage = max(1, last.point.stage - 3)
    changed = {**config, "module": {**config["module"], "checkpoint_from": stage}}
    other = Row(last.point, last.images, last.batch, _in_child(changed, last, gpu, share, available, seconds))
    if other.memory is None:
        return []
    ratio = other.found["seconds"] / last.found["seconds"]
    return [
        f"with module.checkpoint_from={stage}: {other.memory / GIB:.2f} instead of {last.memory / GIB:.2f} GiB in the "
        f"last stage (batch {last.batch}), {ratio:.2f} times the time"
    ]


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _line(cells: tuple[str, ...]) -> str:
    widths = (-5, -11, 11, 6, 12, 11, 11, 10)
    padded = [f"{cell:<{-w}}" if w < 0 else f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=False)]
    return "  ".join([*padded, cells[-1]]).rstrip()
