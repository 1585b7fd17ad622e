"""Checkpoints on the clock, written so that a kill, a full disk or a flipped bit never costs more than one interval."""

import logging
import math
import os
import time
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from pydantic import Field

from callbacks.clock import check_cadence, crossed, reached
from callbacks.divergence import assert_finite
from callbacks.files import write_atomically
from callbacks.state import MOST, State
from lightning_modules.protocols import Clocked

log = logging.getLogger(__name__)

GROWN = " grown"  # ends the name of a score of which only the grown network competes


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to the disk, then renames: the target is the old file or the new one, whole.

    Lightning's own writer goes through the temporary folder, and a kill while it moves the file destroys the previous
    checkpoint. A write that fails is remembered in ``error`` instead of raised: the other processes wait at a barrier,
    and training can go on without this checkpoint.
    """

    error: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        """Write a checkpoint; called on the first process only."""
        self.error = None
        try:
            write_atomically(Path(path), lambda file: _save(checkpoint, file), verify=is_intact)
        except (OSError, RuntimeError) as error:
            self.error = error if isinstance(error, OSError) else OSError(str(error))

    def load_checkpoint(self, path: str | os.PathLike, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint, never code: the environment cannot change that, as it can change torch's default."""
        if not is_intact(Path(path)):
            raise OSError(f"{path} is damaged, or no checkpoint of a Mirage run")
        return torch.load(path, map_location="cpu", weights_only=True)


def _save(checkpoint: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(checkpoint, file)
    except RuntimeError:  # torch speaks of its container when the disk is full
        file.flush()  # which fails again, with the system's own words
        raise


class BestScores(State):
    """The state of ``PeriodicCheckpoint``; older runs kept one score as name and value, or None."""

    best: dict[str, float] | list[Any] | None
    scored_at: int = Field(ge=-1, le=MOST)
    owed: bool = False


class PeriodicCheckpoint(Checkpoint):
    """Saves ``checkpoints/images_<clock>.ckpt`` on the clock and whenever training stops, and the best by score.

    An older checkpoint is removed only after the newer one has passed its checksum.

    Args:
        every_images: Images between two checkpoints.
        every_minutes: Also save when this much time has passed; None = by images only.
        keep: Newest checkpoints that are kept.
        keep_best: Also keep the checkpoint with the best score of the run as ``best.ckpt``. Scores with different
            fingerprints are not compared: of several, the one that was the last to pass its own best counts. Of a
            growing network only the final form competes: at the final size, blurred images of early stages score well.
        keep_at: Clocks whose checkpoint is kept for good as ``kept_<clock>.ckpt``, e.g. one that a paper reports.
    """

    state_model = BestScores
    _LOOK_EVERY_BATCHES = 20  # how often the processes agree on the time

    def __init__(
        self,
        every_images: int = 50_000,
        every_minutes: float | None = 30.0,
        keep: int = 2,
        keep_best: bool = True,
        keep_at: tuple[int, ...] = (),
    ) -> None:
        check_cadence("every_images", every_images)
        if every_minutes is not None:
            check_cadence("every_minutes", every_minutes)
        if keep < 1:
            raise ValueError(f"keep={keep}: must be at least 1")
        for clock in keep_at:
            check_cadence("keep_at", clock)
        self.every_images, self.every_minutes, self.keep, self.keep_best = every_images, every_minutes, keep, keep_best
        self.keep_at, self._owed = keep_at, False  # owed: a checkpoint to keep could not be written
        self.best: dict[str, float] = {}  # best value of each score, which are not compared with each other
        self._scored_at = -1
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: Clocked) -> None:
        """Start the stopwatch; forget a best score whose checkpoint is gone, so that a later one takes its place."""
        self._saved_at = time.monotonic()
        best = Path(trainer.default_root_dir) / "checkpoints" / "best.ckpt"
        if not trainer.strategy.broadcast(best.is_file(), src=0):
            self.best = {}
        # Older runs let every stage compete. Where the grown network has won, its score is still the one to beat.
        old = {kind: value for kind, value in self.best.items() if pl_module.grows and not kind.endswith(GROWN)}
        if old:
            clock = trainer.strategy.broadcast(_clock_of(best) if trainer.is_global_zero else 0, src=0)
            if pl_module.schedule.has_grown(clock):
                self.best = {kind + GROWN: value for kind, value in old.items()} | self.best

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Clocked, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save what is due. Lightning runs this after all other callbacks, so average and score are of this batch."""
        best = self._is_best(pl_module)
        due = crossed(self.every_images, pl_module) or self._time_is_up(trainer, pl_module, batch["images_seen"])
        due = due or trainer.should_stop
        wanted = any(reached(clock, pl_module) for clock in self.keep_at) or (self._owed and due)
        if not (best or due or wanted):
            return
        assert_finite(trainer, pl_module)
        directory = Path(trainer.default_root_dir) / "checkpoints"
        if wanted:
            self._owed = not self._save(trainer, directory / f"kept_{pl_module.images_seen:012d}.ckpt")
        if best and self._save(trainer, directory / "best.ckpt"):
            score = pl_module.record.score
            assert score is not None
            log.info("best score so far at images_seen=%d: %s %.4g", pl_module.images_seen, score.name, score.value)
        if (
            due
            and self._save(trainer, directory / f"images_{pl_module.images_seen:012d}.ckpt")
            and trainer.is_global_zero
        ):
            # What lies behind the present clock is of another past and does not count as newer.
            present = f"images_{pl_module.images_seen:012d}.ckpt"
            for old in sorted(path for path in directory.glob("images_*.ckpt") if path.name <= present)[: -self.keep]:
                old.unlink()

    def state_dict(self) -> dict[str, Any]:
        """Return the best score, so that a resumed run does not take a worse one for it, and what is owed."""
        return {"best": dict(self.best), "scored_at": self._scored_at, "owed": self._owed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the best score; older runs kept one, without the fingerprint that it could be compared by."""
        self.best = dict(state_dict["best"]) if isinstance(state_dict["best"], dict) else {}
        self._scored_at = state_dict["scored_at"]
        self._owed = state_dict.get("owed", False)

    def _is_best(self, module: Clocked) -> bool:
        """Tell whether a score that was taken at this clock is the best of its kind yet, and remember it if so."""
        score, clock = module.record.score, module.record.scored_at
        if not self.keep_best or score is None or clock != module.images_seen or clock == self._scored_at:
            return False
        if not module.schedule.has_grown(clock):
            return False
        self._scored_at = clock
        # Older runs let every stage of a growing network compete, and called the kind by name and fingerprint.
        kind = f"{score.name} {score.fingerprint}" + (GROWN if module.grows else "")
        worst = math.inf if score.better == "lower" else -math.inf
        if not score.beats(self.best.get(kind, worst)):
            return False
        self.best[kind] = score.value
        return True

    def _time_is_up(self, trainer: L.Trainer, module: Clocked, images_seen: int) -> bool:
        if self.every_minutes is None or module.schedule.at(images_seen).batch_index % self._LOOK_EVERY_BATCHES:
            return False
        late = time.monotonic() - self._saved_at > 60.0 * self.every_minutes
        return trainer.strategy.broadcast(late, src=0)  # the clocks of the machines differ

    def _save(self, trainer: L.Trainer, path: Path) -> bool:
        trainer.save_checkpoint(path, weights_only=False)  # with optimizer states
        error = trainer.strategy.broadcast(str(getattr(trainer.strategy.checkpoint_io, "error", None) or ""), src=0)
        self._saved_at = time.monotonic()
        if error:
            log.error(
                "could not write %s (%s); training goes on and the next checkpoint is tried as usual", path, error
            )
        return not error


def _clock_of(path: Path) -> int:
    """Return the clock of a checkpoint, without its tensors."""
    return int(torch.load(path, map_location="meta", weights_only=True)["images_seen"])


def is_intact(path: Path) -> bool:
    """Tell whether a checkpoint is whole and of the kind that torch writes.

    ``torch.load`` accepts a flipped bit, the archive's checksums do not. Torch stores without compression: an archive
    whose entries are larger than itself, or overlap, would unpack to more memory than there is.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            fits = sum(entry.file_size for entry in entries) <= path.stat().st_size
            return stored and fits and archive.testzip() is None
    except Exception:  # zipfile raises nearly anything on damaged archives
        return False
