"""The top level of an experiment file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from experiments.configuration.files import Node
from experiments.configuration.objects import top_level


@dataclass(frozen=True)
class TrainerSettings:
    """Where training runs.

    Args:
        accelerator: "cpu", "gpu" or "auto".
        devices: Processes per machine, or "auto".
        num_nodes: Machines.
        precision: "32-true", or "bf16-mixed" (16-bit floats would overflow in a gradient penalty's second derivative).
        deterministic: Ask the GPU for deterministic algorithms; CPU runs are deterministic in any case.
    """

    # What Lightning's trainer takes under these names is told elsewhere.
    INSTEAD: ClassVar[dict[str, str]] = {
        "accumulate_grad_batches": "a step sees schedule.batch_size images (growing GANs: batch_sizes) of all devices",
        "gradient_clip_val": "module.gradient_clip_norm clips",
        "max_steps": "time is counted in images: schedule.total_images (growing GANs: fade_images and stable_images)",
        "max_epochs": "time is counted in images: schedule.total_images (growing GANs: fade_images and stable_images)",
        "max_time": "a run ends by schedule.total_images; stopped by SIGTERM it saves, and resume=auto goes on",
        "val_check_interval": "callbacks.score.every_images says how often a score is taken",
        "check_val_every_n_epoch": "callbacks.score.every_images says how often a score is taken",
        "log_every_n_steps": "callbacks.losses.every_images says how often losses are written",
        "sync_batchnorm": "on several GPUs it is on by itself",
        "strategy": "several processes train by DDP by themselves",
    }

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int | Literal["auto"] = 1
    num_nodes: int = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no machine has."""
        if isinstance(self.devices, int) and self.devices < 1:
            raise ValueError(f"devices={self.devices}: must be at least 1")
        if self.num_nodes < 1:
            raise ValueError(f"num_nodes={self.num_nodes}: must be at least 1")


@dataclass(frozen=True)
class Experiment:
    """The top level of an experiment file.

    Args:
        name: Folder of the run below ``runs_dir``; the file's name unless given.
        seed: Seed of everything that is random.
        runs_dir: Where run directories are made.
        tracking: W&B "offline" (synchronise later with ``wandb sync``), "online" or "disabled".
        wandb_project: W&B project; also names the salt and the table of pseudonyms.
        resume: "auto" = the newest unfinished run of this name, or a checkpoint or run directory; null = a new run.
        run_id: Folder of the run below its name; with ``resume: auto`` this run and no other goes on. null = the time.
        allow_changes: Resume although hyper-parameters have changed.
        schedule: What depends on time.
        data: The data set.
        module: The GAN family.
        callbacks: What watches the run, by name; null leaves one out.
        trainer: Where it runs.
    """

    name: str
    schedule: Node
    data: Node
    module: Node
    seed: int = 0
    runs_dir: str = "runs"
    tracking: Literal["offline", "online", "disabled"] = "offline"
    wandb_project: str = "mirage"
    resume: str | None = None
    run_id: str | None = None
    allow_changes: bool = False
    callbacks: Node = field(default_factory=dict)
    trainer: Node = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse values that would escape the folder of runs or fail late."""
        for key, name in (("name", self.name), ("wandb_project", self.wandb_project), ("run_id", self.run_id or "new")):
            if not name or Path(name).name != name or name.startswith(".") or not name.isprintable():
                raise ValueError(f"{key}={name!r}: must be a plain folder name")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed={self.seed}: must lie in 0..{2**31 - 1}")


def experiment_of(config: Node) -> Experiment:
    """Check the top level and return it as an object.

    Raises:
        ConfigError: With every problem of the top level.
    """
    return top_level(Experiment, config)
