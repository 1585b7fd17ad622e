"""Train a GAN: ``python -m experiments.run NAME_OR_FILE [key=value ...]``."""

import argparse
import logging
import sys
import warnings

from experiments.config import ConfigError, description, load, shipped
from experiments.redaction import RedactingFormatter

EXIT_BAD_CONFIG = 2
EXIT_DIVERGED = 3

EPILOG = """\
examples:
  python -m experiments.run demo
  python -m experiments.run dcgan_ct_kidney_64 data.root=/data/ct_kidney schedule.batch_size=128
  python -m experiments.run dcgan_ct_kidney_64 resume=auto         continue the newest unfinished run
  python -m experiments.run progressive_chestxray14_1024 --plan    what it needs, measured on this device
  python -m experiments.run my_experiment.yaml trainer.devices=4 trainer.precision=bf16-mixed

exit codes: 0 finished, 2 wrong configuration or data, 3 diverged, 1 anything else
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.run",
        description="Train a GAN as one YAML file describes it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", nargs="?", metavar="NAME_OR_FILE", help="a shipped experiment or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of single values")
    parser.add_argument("--list", action="store_true", help="show the shipped experiments")
    parser.add_argument("--show", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument(
        "--plan", action="store_true", help="measure time and memory of every stage and stop (budget=60s: for how long)"
    )
    options = parser.parse_intermixed_args(arguments)
    if options.list:
        width = max(map(len, shipped()))
        for name in shipped():
            print(f"{name:<{width}}  {description(name)}")
        return 0
    if options.experiment is None:
        parser.error("name an experiment (--list shows them) or a YAML file")
    try:
        overrides = [text for text in options.overrides if not (options.plan and text.startswith("budget="))]
        config = load(options.experiment, overrides)
        if options.show:
            from omegaconf import OmegaConf

            print(OmegaConf.to_yaml(OmegaConf.create(config)), end="")
            return 0
        if options.plan:
            budgets = [text for text in options.overrides if text not in overrides]
            return _plan(config, budgets[-1].removeprefix("budget=") if budgets else "60s")
        return _train(config)
    except ConfigError as error:
        return _refuse(options.experiment, error.problems)


def _plan(config: dict, budget: str) -> int:
    """Import the heavy packages, measure, and print the plan."""
    from experiments.plan import plan, seconds_of

    print("\n".join(plan(config, seconds_of(budget))))
    return 0


def _train(config: dict) -> int:
    """Import the heavy packages, train, and say what came out."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger().handlers[0].setFormatter(RedactingFormatter("%(message)s"))
    logging.captureWarnings(True)
    warnings.filterwarnings("ignore", "Found .* module.* in eval mode")  # the averaged generator is meant to be
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")  # inside Lightning
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view")  # of 1x1 kernels: nothing to move
    from callbacks.divergence import DivergedError
    from datamodules.readers import DataError
    from experiments.processes import external_launcher, is_first_process, let_the_first_process_speak
    from experiments.report import newest_samples, score_lines
    from experiments.training import train
    from lightning_modules.gan import OtherDataError
    from lightning_modules.metrics.features import ExtractorError

    # Lightning announces what it did not find and what one could buy, twice; its warnings still come through.
    logging.getLogger("lightning").handlers.clear()
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)

    try:
        directory = train(config)
    except (DataError, OtherDataError, ExtractorError, DivergedError) as error:
        if not is_first_process(external_launcher()):
            let_the_first_process_speak()
        elif not isinstance(error, DivergedError):
            _refuse(config["name"], [str(error)])
        else:
            print(f"error: {error}", file=sys.stderr)
        return EXIT_DIVERGED if isinstance(error, DivergedError) else EXIT_BAD_CONFIG
    if is_first_process(external_launcher()):
        print("\n".join(["", *score_lines(directory)]))
        print(f"\nsamples  {newest_samples(directory)}\nreport   {directory / 'report.html'}")
    return 0


def _refuse(name: str, problems: list[str]) -> int:
    count = f"{len(problems)} errors" if len(problems) > 1 else "error"
    print(f"{count} in {name}:", *(f"  {problem}" for problem in problems), sep="\n", file=sys.stderr)
    return EXIT_BAD_CONFIG


if __name__ == "__main__":
    sys.exit(main())
