"""Stops a run whose losses are no longer finite."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

from lightning_modules.protocols import Clocked


class DivergedError(RuntimeError):
    """Training left the finite numbers; the message says where, and what is left to resume from."""


class DivergenceWatch(L.Callback):
    """Looks at the losses every few batches and ends the run, on all processes, if one was NaN or infinite.

    With ``roll_backs`` the run goes back to its newest checkpoint instead, at half the learning rates each time.

    The losses are checked on the device; reading the result waits for it, hence "every few batches". Loss
    log, score and checkpoint look as well before they write, so a broken state is never scored or saved.

    Args:
        every_batches: Batches between two looks.
        roll_backs: How often a run may go back before divergence ends it.
    """

    def __init__(self, every_batches: int = 50, roll_backs: int = 0) -> None:
        if every_batches < 1:
            raise ValueError(f"every_batches={every_batches}: must be at least 1")
        if roll_backs < 0:
            raise ValueError(f"roll_backs={roll_backs}: must not be negative")
        self.every_batches, self.roll_backs = every_batches, roll_backs

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Clocked, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look every few batches and at the end."""
        index = pl_module.schedule.at(batch["images_seen"]).batch_index
        if (index + 1) % self.every_batches == 0 or trainer.should_stop:
            assert_finite_losses(trainer, pl_module)


def assert_finite_losses(trainer: L.Trainer, module: Clocked) -> None:
    """Raise DivergedError on every process if any process has seen a loss that is not finite."""
    bad = module.losses.first_bad()
    if not trainer.strategy.reduce_boolean_decision(bad is not None, all=False):
        return
    what = f"loss {bad[0]!r} was NaN or infinite at images_seen={bad[1]}" if bad else "another process diverged"
    raise DivergedError(f"training diverged: {what}. {newest_checkpoint_text(Path(trainer.default_root_dir))}")


def assert_finite(trainer: L.Trainer, module: Clocked) -> None:
    """Raise DivergedError on every process if a loss, a weight or a buffer of any process is not finite."""
    assert_finite_losses(trainer, module)
    tensors = [tensor.detach() for tensor in module.state_dict().values() if tensor.is_floating_point()]
    finite = bool(torch.stack(torch._foreach_norm(tensors)).isfinite().all())
    if trainer.strategy.reduce_boolean_decision(not finite, all=False):
        raise DivergedError(
            f"training diverged: a weight is NaN or infinite at images_seen={module.images_seen}. "
            f"{newest_checkpoint_text(Path(trainer.default_root_dir))}"
        )


def newest_checkpoint_text(run_dir: Path) -> str:
    """Say which checkpoint a diverged run can be resumed from."""
    checkpoints = sorted((run_dir / "checkpoints").glob("images_*.ckpt"))
    if not checkpoints:
        return "There is no checkpoint before it: start anew with a lower learning rate."
    return (
        f"The newest good checkpoint is {checkpoints[-1]}: resume={checkpoints[-1]} allow_changes=true with a lower "
        "learning rate continues from it."
    )
