"""The run directory: what is in it, how a run is found again, and what must not have changed when it goes on.

``runs/<name>/<id>/`` holds config.yaml, versions.json, status.json, checkpoints/, samples/, metrics.jsonl,
scores.jsonl, health.json, log.txt, wandb/ and the final report.
"""

import fcntl
import json
import logging
import os
import platform
import secrets
import shutil
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from callbacks.checkpoint import is_intact
from callbacks.files import sweep_temporaries, training_goes_on, write_atomically
from callbacks.state import MOST
from experiments.configuration.errors import ConfigError
from experiments.configuration.files import Node, load
from experiments.configuration.objects import check, completed
from experiments.configuration.untrusted import read_object, read_yaml
from lightning_modules.metrics.features import FeatureExtractor

log = logging.getLogger(__name__)

# What decides the weights that training ends with. Paths, processes and cadences of what only watches may change.
HYPER_PARAMETERS = (
    "seed",
    "schedule",
    "module",
    "data",
    "callbacks.ema",
    "callbacks.fade_in",
    "callbacks.divergence.roll_backs",
    "trainer.precision",
)
MAY_CHANGE = (
    *(f"data.{key}" for key in ("root", "csv", "exclude_csv", "cache_dir", "num_workers", "max_unreadable")),
    "module.checkpoint_from",
)


@dataclass(frozen=True)
class Start:
    """Where a run begins: its directory, and the checkpoint to continue from, if any."""

    directory: Path
    checkpoint: Path | None


def new_id() -> str:
    """Return an id that no other run has."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def find_start(runs_dir: Path, name: str, resume: str | None, run_id: str | None = None) -> Start:
    """Decide where to begin.

    Args:
        runs_dir: Folder of all runs.
        name: Name of the experiment.
        resume: None = a new run; "auto" = the newest unfinished run of that name, or a new one if there is none; else
            a checkpoint or a run directory.
        run_id: Folder of a new run, and the only one that "auto" looks at; None = any.

    Raises:
        ConfigError: If what ``resume`` names cannot be continued, or a new run's folder exists.
    """
    new = Start((runs_dir / name / (run_id or new_id())).absolute(), None)
    if resume == "auto":
        return _newest_unfinished(runs_dir, name, run_id) or new
    if resume is None and new.directory.exists():
        raise ConfigError([f"run_id={run_id}: {new.directory} exists; resume=auto goes on with it"])
    if resume is None:
        return new
    path = Path(resume).absolute()
    if path.is_file() and path.parent.name == "checkpoints":
        if not is_intact(path):
            raise ConfigError(
                [f"resume={resume}: the checkpoint is damaged; resume={path.parent.parent} takes another"]
            )
        refuse_links(path.parent.parent)
        return Start(path.parent.parent, path)
    if (path / "config.yaml").is_file():
        refuse_links(path)
        return Start(path, _where_to_go_on(path))
    raise ConfigError([f"resume={resume}: expected auto, a run directory, or a checkpoint in its folder checkpoints/"])


def refuse_links(directory: Path) -> None:
    """Check that going on with a run, perhaps a stranger's, writes into its directory only.

    Raises:
        ConfigError: If anything below it is a symbolic link to the outside, or no file at all (opening a pipe waits).
    """
    inside = os.path.realpath(directory) + os.sep
    for folder, folders, files in os.walk(directory):
        for path in (Path(folder, name) for name in (*folders, *files)):
            if path.is_symlink() and not os.path.realpath(path).startswith(inside):
                if directory / "wandb" in path.parents:  # W&B links one log to another; in a copy this leads elsewhere
                    path.unlink()
                    continue
                raise ConfigError(
                    [f"{path}: is a symbolic link that leaves the run directory; remove it to go on with this run"]
                )
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise ConfigError([f"{path}: is no file; remove it to go on with this run"])


def newest_usable_checkpoint(directory: Path) -> Path | None:
    """Return the newest checkpoint of a run that passes its checksums; damaged ones are named in a warning."""
    for path in sorted((directory / "checkpoints").glob("images_*.ckpt"), reverse=True):
        if is_intact(path):
            return path
        log.warning("%s is damaged; taking the one before it", path)
    return None


def opened(checkpoint: Path) -> dict[str, Any]:
    """Return what lies in a checkpoint; tensors stay on the disk until they are looked at.

    Raises:
        ConfigError: If the file is none of ours: it holds no clock.
    """
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        clock = content["images_seen"]
    except Exception as error:  # unpickling raises nearly anything
        raise ConfigError([f"{checkpoint}: is no checkpoint of a Mirage run ({type(error).__name__})"]) from error
    if type(content) is not dict or type(clock) is not int or not 0 <= clock <= MOST:
        raise ConfigError([f"{checkpoint}: is no checkpoint of a Mirage run (it has no images_seen)"])
    return content


def clock_of(checkpoint: Path) -> int:
    """Return the images seen of a checkpoint.

    Raises:
        ConfigError: If the file is none of ours.
    """
    return opened(checkpoint)["images_seen"]


def read_status(directory: Path) -> dict[str, Any]:
    """Return the state of a run; a run that was killed is still "running"."""
    return read_object(directory / "status.json")


def write_status(directory: Path, state: str, **more: Any) -> None:
    """Write the state of a run: running, finished, preempted, diverged or failed."""
    with training_goes_on(directory / "status.json"):
        write_text(directory / "status.json", json.dumps({"state": state, **more}, indent=2) + "\n")


def create(directory: Path, config: Node) -> None:
    """Create the directory with the resolved config and the versions; what a resumed run finds there is kept.

    Its versions are those that made its checkpoints until training goes on (``callbacks.environment``).
    """
    directory.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(directory)
    text = OmegaConf.to_yaml(OmegaConf.create(config))
    old = directory / "config.yaml"
    if old.is_file() and old.read_bytes() != text.encode():
        shutil.copy2(old, directory / f"config.before-{time.strftime('%Y%m%d-%H%M%S')}.yaml")
    write_text(directory / "config.yaml", text)
    if not (directory / "versions.json").is_file():
        write_text(directory / "versions.json", json.dumps(versions(), indent=2) + "\n")


def recorded_config(directory: Path) -> Node:
    """Return the configuration that a run has recorded, resolved.

    Raises:
        ConfigError: If it cannot be read.
    """
    # Older runs recorded where they were tracked; a file may not say "online".
    config = load(str(directory / "config.yaml"), ["tracking=disabled"])
    return {key: value for key, value in config.items() if key != "tracking"}


def changed_hyper_parameters(directory: Path, config: Node) -> list[str]:
    """Return "key: was X, is Y" for everything that decides the result and differs from the run's config."""
    old = _record(directory)
    # Records of earlier versions leave empty lists out.
    before, now = ({key: value for key, value in flat(node).items() if value != []} for node in (old, config))
    relevant = sorted(key for key in before.keys() | now.keys() if matters(key) and before.get(key) != now.get(key))
    return [f"{key}: was {before.get(key)!r}, is {now.get(key)!r}" for key in relevant]


def with_own_extractors(directory: Path, config: Node) -> Node:
    """Return a configuration whose periodic scores read what the run in a directory has recorded for them.

    Scores of two extractors are not compared: with a default that has changed since, a resumed run would choose its
    best checkpoint anew. Where weights lie may change.

    Raises:
        ConfigError: If the record names what is no extractor.
    """
    record = _record(directory)
    before = record.get("callbacks") if isinstance(record, dict) else None
    callbacks = dict(config["callbacks"])
    for name, node in callbacks.items():
        old = before.get(name) if isinstance(before, dict) else None
        own = old.get("extractor") if isinstance(old, dict) else None
        if own and node and node.get("extractor"):
            key = f"callbacks.{name}.extractor"
            if problems := check(own, key, FeatureExtractor):
                raise ConfigError([f"{directory / 'config.yaml'}: {problem}" for problem in problems])
            own = completed(own)
            if {**own, "weights": None} != {**node["extractor"], "weights": None}:
                callbacks[name] = {**node, "extractor": own}
    return {**config, "callbacks": callbacks}


def _record(directory: Path) -> Any:
    """Return what ``config.yaml`` says, perhaps a stranger's."""
    try:
        return read_yaml(directory / "config.yaml")
    except (OSError, ValueError, YAMLError, OmegaConfBaseException, RecursionError, AttributeError, TypeError) as error:
        raise ConfigError([f"{directory / 'config.yaml'}: cannot be read ({' '.join(str(error).split())})"]) from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    write_atomically(path, lambda file: file.write(content))


def set_aside_overtaken(directory: Path, clock: int) -> None:
    """Move checkpoints and grids behind the clock that a run goes on from out of the way.

    They belong to a future that is about to be replaced: kept in place, they would be taken for the newest ones, or
    for the best.
    """
    for folder in ("checkpoints", "samples"):
        for path in [*(directory / folder).glob("*_*.*"), *(directory / folder).glob("best.ckpt")]:
            if _is_overtaken(path, clock):
                target = directory / folder / "overtaken" / path.name
                target.parent.mkdir(exist_ok=True)
                path.replace(target)


def _is_overtaken(path: Path, clock: int) -> bool:
    if path.name != "best.ckpt":
        number = path.stem.rpartition("_")[2]
        return number.isdecimal() and int(number) > clock
    try:
        return clock_of(path) > clock
    except ConfigError as error:
        log.warning("%s; it is set aside", error)
        return True


def lock(directory: Path) -> BinaryIO:
    """Hold a run directory for this process; the system lets go of it when the process ends, however it ends.

    Raises:
        ConfigError: If another process trains in it.
    """
    file = (directory / ".lock").open("ab")
    deadline = time.monotonic() + 15.0  # reading processes of a killed run hold on for some seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError as error:
            pid = read_status(directory).get("pid", 0)
            if _is_alive(pid) or time.monotonic() > deadline:
                file.close()
                message = f"{directory}: process {pid} is training in this run directory; stop it first"
                raise ConfigError([message]) from error
            time.sleep(0.2)


def _is_alive(pid: Any) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError, OverflowError, TypeError):  # a stranger's file may say anything
        return False
    return pid > 0


def versions() -> dict[str, Any]:
    """Return what the run was made with: Python, packages, machine, git commit."""
    packages = ("mirage-gan", "torch", "lightning", "torchvision", "torchmetrics", "monai", "numpy", "pillow")
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return {**found, "git_commit": _git("rev-parse", "HEAD"), "git_changes": bool(_git("status", "--porcelain"))}


def _newest_unfinished(runs_dir: Path, name: str, run_id: str | None) -> Start | None:
    candidates = [path.parent for path in (runs_dir / name).glob(f"{run_id or '*'}/config.yaml")]
    for directory in sorted(candidates, key=lambda path: path.name, reverse=True):
        refuse_links(directory)
        state = read_status(directory).get("state")
        if state == "finished":
            continue
        if state == "diverged":
            raise ConfigError(
                [
                    f"resume=auto: the newest unfinished run {directory} diverged and would do so again; continue "
                    f"it with resume={directory} allow_changes=true and a lower learning rate, or start anew without "
                    "resume"
                ]
            )
        return Start(directory.absolute(), _where_to_go_on(directory))
    return None


def _where_to_go_on(directory: Path) -> Path | None:
    """Return the newest usable checkpoint, or None if the run was killed before its first one."""
    checkpoint = newest_usable_checkpoint(directory)
    damaged = sorted((directory / "checkpoints").glob("images_*.ckpt"))
    if checkpoint is None and damaged:
        others = [*(directory / "checkpoints").glob("best.ckpt"), *(directory / "checkpoints").glob("kept_*.ckpt")]
        usable = " or ".join(f"resume={path}" for path in sorted(others) if is_intact(path))
        names = ", ".join(path.name for path in damaged)
        what_to_do = f"go on from an older one with {usable}" if usable else "start anew without resume"
        raise ConfigError([f"{directory}: all checkpoints are damaged ({names}); {what_to_do}"])
    return checkpoint


def matters(key: str) -> bool:
    """Tell whether a key with dots decides the weights that training ends with."""
    return any(f"{key}.".startswith(f"{part}.") for part in HYPER_PARAMETERS) and key not in MAY_CHANGE


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested values under keys with dots."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found.update(flat(value, f"{prefix}.{key}" if prefix else str(key)))
    return found


def _git(*arguments: str) -> str | None:
    root = Path(__file__).parent.parent.parent
    if not (root / ".git").exists():  # an installed copy inside somebody else's repository has no commit of its own
        return None
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
