"""Where numbers and pictures go: ``metrics.jsonl`` always, W&B as its mirror."""

import json
import logging
import os
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from callbacks.files import Rows, write_atomically
from experiments.configuration.files import Node

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)


class JSONLinesLogger(Logger):
    """Appends one JSON object per row to ``metrics.jsonl``: the record of the run.

    A row carries ``images_seen``. When a run goes on from a checkpoint, a row ``{"resumed_at": clock}`` says from
    where; ``read_rows`` leaves out what lies behind it and was done again.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.path = directory / "metrics.jsonl"
        self._rows = Rows(self.path)

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "record"

    @property
    def version(self) -> str:
        """Version of the run's record."""
        return self.path.parent.name

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row; the step is ignored, since Lightning's counts optimizer steps."""
        self._rows.append({**metrics, "time": time.strftime("%Y-%m-%dT%H:%M:%S")})


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl or scores.jsonl as the uninterrupted run would have written them (times aside).

    Torn rows are left out, rows that are none of ours (the file may be a stranger's), and rows that a resume from an
    earlier checkpoint has overtaken.
    """
    rows: list[dict[str, Any]] = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(row, dict):
            continue
        if _is_clock(row.get("resumed_at")):
            rows = [old for old in rows if old["images_seen"] <= row["resumed_at"]]
        elif _is_clock(row.get("images_seen")):
            rows.append(row)
    return rows


def _is_clock(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


class WandbMirror(WandbLogger):
    """Lightning's W&B logger, and pictures under the clock. What W&B refuses is only missing in W&B."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Mirror a row of the record."""
        with _run_goes_on():
            super().log_metrics(metrics, step)

    @rank_zero_only
    def log_picture(self, name: str, path: Path, images_seen: int) -> None:
        """Show an image file at a clock."""
        import wandb

        with _run_goes_on():
            self.experiment.log({name: wandb.Image(str(path)), "images_seen": images_seen})

    def close(self, failed: bool, preempted: bool = False) -> None:
        """End the W&B run; without this the next run of this process would be logged to it.

        Args:
            failed: Whether the run is shown as failed.
            preempted: Whether W&B is told that the run will go on.
        """
        with _run_goes_on():
            if preempted:
                self.experiment.mark_preempting()
            self.experiment.finish(exit_code=int(failed))


@contextmanager
def _run_goes_on() -> Iterator[None]:
    """Log whatever goes wrong in W&B, which raises nearly anything, instead of ending the run or hiding its error."""
    try:
        yield
    except Exception as error:
        log.warning("W&B failed (%s); the record in metrics.jsonl is complete without it", _first_line(error))


def wandb_logger(directory: Path, mode: Literal["offline", "online"], project: str, config: Node) -> WandbMirror | None:
    """Return the W&B logger of a run, or None if W&B cannot be used; never waits for a login or a dead network.

    Offline unless ``mode`` is "online": a key left in the environment must not upload patient images. Called on the
    first process only.
    """
    # Artifacts and settings would go to the home directory otherwise, even offline.
    for variable, folder in (("WANDB_DATA_DIR", "data"), ("WANDB_CACHE_DIR", "cache"), ("WANDB_CONFIG_DIR", "config")):
        os.environ[variable] = str(directory / "wandb" / folder)
    os.environ["WANDB_SILENT"] = "true"
    try:
        import wandb
    except Exception as error:  # a broken package raises nearly anything
        log.warning("W&B cannot be imported (%s); the record in metrics.jsonl is complete without it", error)
        return None
    arguments: dict[str, Any] = {
        "dir": str(directory),
        "project": project,
        "name": f"{config['name']}-{directory.name}",
        "id": wandb_run_id(directory),
        "resume": "allow",
        "config": config,
    }
    if mode == "online":
        try:
            return _mirror("online", arguments)
        except Exception as error:
            why = _first_line(error)
            log.warning("W&B is not reachable (%s); tracking offline, upload later with: wandb sync", why)
    try:
        if mode == "online":
            wandb.teardown()
        return _mirror("offline", arguments)
    except Exception as error:
        why = _first_line(error)
        log.warning("W&B cannot write offline (%s); the record in metrics.jsonl is complete without it", why)
        return None


def _mirror(mode: Literal["offline", "online"], arguments: dict[str, Any]) -> WandbMirror:
    import wandb

    run = wandb.init(mode=mode, settings=_settings(), **arguments)
    run.define_metric("images_seen")
    run.define_metric("*", step_metric="images_seen")
    return WandbMirror(experiment=run, log_model=False)


def wandb_run_id(directory: Path) -> str:
    """Return the id of a run's W&B run and keep it in the directory, so that a resumed run continues the same one.

    It is the directory's name, or that which the agent of a W&B sweep has chosen before it started us.
    """
    path = directory / "wandb_run_id"
    if not path.is_file():
        chosen = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
        write_atomically(path, lambda file: file.write((chosen or directory.name).encode()))
    return path.read_text().strip()


def _settings() -> "wandb.Settings":
    """Return settings that keep to numbers, pictures and the configuration: nothing of user, machine or terminal."""
    import wandb

    return wandb.Settings(
        init_timeout=15,
        console="off",  # log lines name patients on the terminal
        disable_code=True,
        disable_git=True,
        x_disable_meta=True,  # command line, program, host, user, e-mail, packages' paths
        x_disable_machine_info=True,
        x_disable_stats=True,
        symlink=False,  # a run directory is copied to other machines
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
