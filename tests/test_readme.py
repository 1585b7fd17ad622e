"""What README and pages say is real: every command, override, target, example, module and link is checked."""

import importlib.util
import re
import shlex

import pytest
from conftest import ROOT

from experiments import cli, export, generate, launch, reproduce, run, sweep
from experiments.configuration import files
from experiments.measuring.settings import load_suite
from experiments.papers.study import load_study
from experiments.running.parts import build, checked
from experiments.sweeps.settings import check_experiments, load_sweep
from experiments.sweeps.wandb_engine import sweep_config

README = ROOT / "README.md"
DOCS = ROOT / "experiments" / "docs"
PAGES = {path: path.read_text() for path in (README, *sorted(DOCS.rglob("*.md")))}
BLOCKS = [block for page in PAGES.values() for block in re.findall(r"```\n(.*?)```", page, flags=re.DOTALL)]
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if " ..." not in line]
COMMANDS = sorted({" ".join(line.split("#")[0].split()) for line in LINES})
SWEEPS = [line for line in COMMANDS if "-m experiments.sweep" in line]
EXAMPLES = {found[1]: block for block in BLOCKS if (found := re.match(r"# (\w+\.yaml)", block))}
RUNS = [line for line in COMMANDS if "-m experiments.run" in line and not line.startswith("$")]


def arguments(line, verb="experiments.run"):
    words = shlex.split(line.partition(">")[0])
    return words[words.index(verb) + 1 :]


@pytest.mark.parametrize("line", RUNS)
def test_command_is_valid(line, tmp_path, capsys):
    given = arguments(line)
    if given[0].startswith("--"):
        assert run.main(given) == 0
        return
    if given[0] in EXAMPLES:
        (tmp_path / given[0]).write_text(EXAMPLES[given[0]])
        given[0] = str(tmp_path / given[0])
    overrides = [argument for argument in given[1:] if not argument.startswith(("--", "budget="))]
    experiment = checked(files.load(given[0], overrides))
    if "/models/" not in line:  # weights that a user brings
        build(experiment)


@pytest.mark.parametrize("line", SWEEPS)
def test_sweep_command_is_valid(line, monkeypatch):
    for name, value in re.findall(r"^(MIRAGE_\w+)=(\S+) ", line):
        monkeypatch.setenv(name, value)
    given = arguments(line, "experiments.sweep")
    if any(argument.startswith("--") for argument in given):
        assert sweep.main(given) == 0
        return
    settings = load_sweep(given[0], given[1:])
    if not line.startswith("MIRAGE_"):  # where data lie that are not here
        check_experiments(settings)
    if settings.engine == "wandb":
        sweep_config(settings)


@pytest.mark.parametrize("line", [line for line in COMMANDS if "-m experiments.launch" in line])
def test_launch_command_is_valid(line, capsys):
    assert launch.main(arguments(line, "experiments.launch")) == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash")


@pytest.mark.parametrize("verb", [generate, export])
def test_commands_that_publish_are_valid(verb):
    lines = [line for line in COMMANDS if f"-m {verb.__name__} " in line]
    assert lines
    for line in lines:
        options = verb.parser().parse_args(arguments(line, verb.__name__))
        assert str(options.run) == "RUN" or options.run.parts[1] in files.shipped()


def test_evaluation_commands_are_valid():
    lines = [line for line in COMMANDS if line.startswith("python -m experiments.evaluate ")]
    assert len(lines) >= 12
    for line in lines:
        target, *overrides = arguments(line, "experiments.evaluate")
        named = [text.removeprefix("suite=") for text in overrides if text.startswith("suite=")]
        load_suite((named or ["standard"])[-1], [text for text in overrides if not text.startswith("suite=")])
        assert "=" not in target


def test_reproduce_commands_are_valid(tmp_path):
    lines = [line for line in COMMANDS if "-m experiments.reproduce " in line]
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
    named = {word for line in COMMANDS if line.startswith("make ") for word in line.split()[1:] if "=" not in word}
    assert named and named <= targets


def test_example_of_errors_is_what_is_printed(capsys):
    example = next(block for block in BLOCKS if block.startswith("$ python -m experiments.run"))
    command, *expected = example.strip().splitlines()
    assert run.main(arguments(command)) == cli.EXIT_BAD_CONFIG
    assert capsys.readouterr().err.splitlines() == expected


def test_every_shipped_experiment_is_in_the_table():
    for name in files.shipped():
        assert f"| `{name}` |" in PAGES[DOCS / "experiments.md"]


def test_every_shipped_sweep_is_named():
    for name in files.shipped(files.SWEEPS):
        assert f"`{name}`" in PAGES[DOCS / "sweeps.md"]


def test_readme_is_short():
    assert README.stat().st_size <= 12_000


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", page, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[path]):
        if not link.startswith("https://"):
            to, _, anchor = link.partition("#")
            target = (path.parent / to).resolve() if to else path
            assert target.exists(), link
            assert not anchor or anchor in anchors(PAGES[target]), link


def test_every_page_can_be_reached_from_the_readme():
    reached, waiting = set(), [README]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            waiting += [(page.parent / to).resolve() for to in re.findall(r"\]\(([^)#:\s]+\.md)", PAGES[page])]
    assert reached == set(PAGES)


def test_every_picture_of_the_results_is_shown():
    shown = {(path.parent / to).resolve() for path in PAGES for to in re.findall(r"\]\(([^)\s]+\.png)\)", PAGES[path])}
    assert shown == set(DOCS.rglob("*.png"))


def test_every_module_that_is_run_exists():
    for name in {name for page in PAGES.values() for name in re.findall(r"python -m (experiments[\w.]*\w)", page)}:
        assert importlib.util.find_spec(name), name


def test_every_page_that_code_names_exists():
    packages = ("lightning_modules", "datamodules", "callbacks", "experiments")
    files = [path for package in packages for path in (ROOT / package).rglob("*") if path.suffix in (".py", ".yaml")]
    named = {name for path in files for name in re.findall(r"experiments/docs/[\w/]+\.md", path.read_text())}
    assert len(named) >= 5 and not [name for name in named if not (ROOT / name).is_file()]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_is_named_exists(path):
    """Names in back quotes that begin with a folder of the project; a star stands for any."""
    folders = "experiments|callbacks|datamodules|lightning_modules|tests|findings"
    for name in re.findall(rf"`((?:{folders})/[\w./*-]*)`", PAGES[path]):
        assert any(ROOT.glob(name)) or any((ROOT / "tests").glob(name)), name
