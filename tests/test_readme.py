"""The README's commands are real: every experiment, override, target and example is checked against the project."""

import re
import shlex

import pytest
from conftest import ROOT

from experiments import cli, export, generate, launch, reproduce, run, sweep
from experiments.configuration import files
from experiments.configuration.experiment import experiment_of
from experiments.measuring.settings import load_suite
from experiments.papers.study import load_study
from experiments.running.parts import build
from experiments.sweeps.settings import check_experiments, load_sweep
from experiments.sweeps.wandb_engine import sweep_config

README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in sorted((ROOT / "experiments" / "docs").rglob("*.md"))}
BLOCKS = re.findall(r"```\n(.*?)```", README, flags=re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
SWEEPS = [line.split("#")[0] for line in LINES if "-m experiments.sweep" in line]
EXAMPLE = next(block for block in BLOCKS if block.startswith("# my_experiment.yaml"))
RUNS = [line.split("#")[0] for line in LINES if "-m experiments.run" in line and not line.startswith("$")]


def arguments(line, verb="experiments.run"):
    words = shlex.split(line.partition(">")[0])
    return words[words.index(verb) + 1 :]


@pytest.mark.parametrize("line", RUNS)
def test_command_is_valid(line, tmp_path, capsys):
    given = arguments(line)
    if given[0].startswith("--"):
        assert run.main(given) == 0
        return
    if given[0] == "my_experiment.yaml":
        (tmp_path / given[0]).write_text(EXAMPLE)
        given[0] = str(tmp_path / given[0])
    overrides = [argument for argument in given[1:] if not argument.startswith(("--", "budget="))]
    build(experiment_of(files.load(given[0], overrides)))


@pytest.mark.parametrize("line", SWEEPS)
def test_sweep_command_is_valid(line):
    given = arguments(line, "experiments.sweep")
    if any(argument.startswith("--") for argument in given):
        assert sweep.main(given) == 0
        return
    settings = load_sweep(given[0], given[1:])
    check_experiments(settings)
    if settings.engine == "wandb":
        sweep_config(settings)


@pytest.mark.parametrize("line", [line for line in LINES if "-m experiments.launch" in line])
def test_launch_command_is_valid(line, capsys):
    assert launch.main(arguments(line, "experiments.launch")) == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash")


@pytest.mark.parametrize("verb", [generate, export])
def test_commands_that_publish_are_valid(verb):
    lines = [line.split("#")[0] for line in LINES if f"-m {verb.__name__} " in line]
    assert lines
    for line in lines:
        options = verb.parser().parse_args(arguments(line, verb.__name__))
        assert options.run.parts[0] == "runs" and options.run.parts[1] in files.shipped()


def test_evaluation_commands_are_valid():
    of_pages = [line for page in PAGES.values() for line in page.splitlines()]
    lines = [line for line in [*LINES, *of_pages] if line.startswith("python -m experiments.evaluate ")]
    assert len(lines) >= 15
    for line in lines:
        target, *overrides = arguments(line, "experiments.evaluate")
        named = [text.removeprefix("suite=") for text in overrides if text.startswith("suite=")]
        load_suite((named or ["standard"])[-1], [text for text in overrides if not text.startswith("suite=")])
        assert "=" not in target


def test_reproduce_commands_are_valid(tmp_path):
    lines = [line for line in LINES if "-m experiments.reproduce " in line]
    assert {arguments(line, "experiments.reproduce")[0] for line in lines} >= set(files.shipped(files.PAPERS))
    for line in lines:
        paper, *overrides = [word for word in arguments(line, "experiments.reproduce") if not word.startswith("--c")]
        overrides = [text for text in overrides if not text.startswith("inception=")]
        if paper.startswith("--"):
            assert reproduce.main([paper]) == 0
        else:
            assert load_study(paper, [*overrides, f"runs_dir={tmp_path}"]).runs


def test_there_are_commands_to_check():
    assert len(RUNS) >= 8 and len(SWEEPS) >= 5


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {word for line in LINES if line.startswith("make ") for word in line.split("#")[0].split()[1:]}
    assert named and named <= targets


def test_example_of_errors_is_what_is_printed(capsys):
    example = next(block for block in BLOCKS if block.startswith("$ python -m experiments.run"))
    command, *expected = example.strip().splitlines()
    assert run.main(arguments(command)) == cli.EXIT_BAD_CONFIG
    assert capsys.readouterr().err.splitlines() == expected


def test_every_shipped_experiment_is_in_the_table():
    for name in files.shipped():
        assert f"| `{name}` |" in README


def test_every_shipped_sweep_is_named():
    for name in files.shipped(files.SWEEPS):
        assert f"`{name}`" in README


def test_every_link_within_the_page_has_its_heading():
    headings = re.findall(r"^#+ (.*)$", README, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    named = set(re.findall(r"\]\(#(.*?)\)", README))
    assert len(named) > 15 and named <= anchors


def test_every_page_is_linked_and_every_link_leads_to_a_page():
    linked = set()
    for path, text in {ROOT / "README.md": README, **PAGES}.items():
        linked |= {(path.parent / to).resolve() for to in re.findall(r"\]\(([^)#:]+\.md)", text)}
    assert linked == set(PAGES)


def test_every_picture_exists():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README) + re.findall(r'<img src="(.*?)"', README):
        assert (ROOT / path).is_file(), path
