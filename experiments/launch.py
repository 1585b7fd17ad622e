"""Submit a run to SLURM: ``python -m experiments.launch NAME_OR_FILE [key=value ...] --slurm [option=value ...]``."""

import difflib
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli import EXIT_PREEMPTED, new_parser, refuse
from experiments.configuration.errors import ConfigError
from experiments.configuration.files import Node, load

if TYPE_CHECKING:
    from submitit import SlurmExecutor

# Seconds between the warning and the time limit: a step, a score and a checkpoint of the largest networks.
WARN_SECONDS = 300
DEFAULTS: Node = {"nodes": 1, "gpus_per_node": 1, "cpus_per_task": 8, "time": 24 * 60}

EPILOG = f"""\
examples:
  python -m experiments.launch progressive_chestxray14_1024 data.root=/data/chestxray14 \\
      --slurm partition=gpu nodes=2 gpus_per_node=8 time=2880 --dry-run

SLURM options are those of sbatch with underscores (partition, account, qos, constraint, mem, ...); time is in minutes.
Default: {", ".join(f"{name}={value}" for name, value in DEFAULTS.items())}. trainer.num_nodes and trainer.devices
follow from them.

{WARN_SECONDS} seconds before the time limit every process gets SIGUSR1, saves and exits with code {EXIT_PREEMPTED};
the job is requeued and goes on where it was.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = new_parser("launch", "Submit a run to SLURM that saves and requeues itself before its time limit.", EPILOG)
    parser.add_argument("experiment", metavar="NAME_OR_FILE", help="a shipped experiment or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of single values")
    parser.add_argument("--slurm", nargs="*", metavar="option=value", required=True, help="options of sbatch")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/slurm"), help="scripts and output (default: %(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the script and submit nothing")
    options = parser.parse_intermixed_args(arguments)
    try:
        slurm = slurm_options(options.slurm)
        script_of = executor(options.folder, options.experiment, slurm)
        command = run_command(options.experiment, options.overrides, slurm)
    except ConfigError as error:
        return refuse(options.experiment, error.problems)
    if options.dry_run:
        print(script_of._make_submission_file_text(command, uid=""))
        return 0
    if shutil.which("sbatch") is None:
        return refuse(options.experiment, ["there is no sbatch on this machine; --dry-run prints the script"])
    options.folder.mkdir(parents=True, exist_ok=True)
    job = script_of._submit_command(command)
    print(f"submitted job {job.job_id}\nscript   {job.paths.submission_file}\noutput   {job.paths.stdout}")
    return 0


def slurm_options(texts: Sequence[str]) -> Node:
    """Return the options of sbatch, with the defaults for those that are not given.

    Raises:
        ConfigError: With every option that sbatch does not have or that is not written option=value.
    """
    from submitit.slurm.slurm import _get_default_parameters

    # The rest is set here or has no meaning for one job.
    known = set(_get_default_parameters()) - {"signal_delay_s", "setup", "teardown", "srun_args", "use_srun"}
    known -= {"additional_parameters", "ntasks_per_node", "array_parallelism", "num_gpus", "stderr_to_stdout"}
    found, problems = dict(DEFAULTS), []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            problems.append(f"--slurm {text}: an option is written option=value, e.g. partition=gpu")
        elif name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            problems.append(
                f"--slurm {name}: sbatch has no such option{f'; did you mean {close[0]}?' if close else ''}"
            )
        else:
            found[name] = int(value) if value.isdecimal() else value
    for name in DEFAULTS:
        if not isinstance(found[name], int) or found[name] < 1:
            problems.append(f"--slurm {name}={found[name]}: expected a whole number of at least 1")
    if problems:
        raise ConfigError(problems)
    return found


def run_command(experiment: str, overrides: Sequence[str], slurm: Node) -> str:
    """Return the command line of every process, after everything that can be checked here has been.

    The run gets its directory now: a requeued job goes on in its own, also when several jobs train the same experiment.

    Raises:
        ConfigError: With everything that is wrong with the experiment.
    """
    from experiments.record.run_directory import new_id
    from experiments.running.agreement import problems_of_shape, problems_of_sharing
    from experiments.running.parts import build, checked

    placed = [f"trainer.num_nodes={slurm['nodes']}", f"trainer.devices={slurm['gpus_per_node']}"]
    added = [*overrides, *placed, f"run_id={new_id()}", "resume=auto"]
    parts = build(checked(load(experiment, added)))
    problems = problems_of_sharing(parts.schedule, slurm["nodes"] * slurm["gpus_per_node"]) + problems_of_shape(parts)
    if problems:
        raise ConfigError(problems)
    return shlex.join([sys.executable, "-u", "-m", "experiments.run", experiment, *added])


def executor(folder: Path, name: str, slurm: Node) -> "SlurmExecutor":
    """Return submitit's executor, set up to write and submit a script that can be read and run without submitit.

    The processes are the plain command line: nothing is pickled, and requeueing is three lines of the script.

    Raises:
        ConfigError: If an option has a value that sbatch cannot have.
    """
    import submitit

    class Executor(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 2  # scripts can be written where there is no SLURM

    written = Executor(folder)
    try:
        written.update_parameters(
            **{"wckey": None, **slurm},
            job_name=Path(name).stem,
            ntasks_per_node=slurm["gpus_per_node"],
            # If a process dies, srun ends the others, which would wait for it.
            srun_args=["--kill-on-bad-exit=1"],
            additional_parameters={"signal": f"USR1@{WARN_SECONDS}", "requeue": True},
            teardown=[
                "code=$?",
                f'if [ "$code" -eq {EXIT_PREEMPTED} ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
                'exit "$code"',
            ],
        )
    except (TypeError, ValueError) as error:
        raise ConfigError([f"--slurm: {error}"]) from error
    return written


if __name__ == "__main__":
    sys.exit(main())
