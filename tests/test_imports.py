"""Imports point down: experiments -> callbacks -> lightning_modules; data and modules never know each other."""

import ast
import importlib
import inspect
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

ALLOWED = {
    "lightning_modules": {"lightning_modules"},
    "datamodules": {"datamodules"},
    "callbacks": {"callbacks", "lightning_modules"},
    "experiments": {"experiments", "callbacks", "datamodules", "lightning_modules"},
}
FILES = [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    package = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for name in imported(path)} & ALLOWED.keys()
    assert ours <= ALLOWED[package]


@pytest.mark.parametrize("folder", ["lightning_modules/networks", "lightning_modules/metrics"])
def test_plain_torch_does_not_import_lightning(folder):
    for path in (ROOT / folder).glob("*.py"):
        assert not any(name.split(".")[0] == "lightning" for name in imported(path)), path


MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
GRAPH = {name: imported(path) & MODULES.keys() - {name} for name, path in MODULES.items()}
VERBS = {path.stem for path in (ROOT / "experiments").glob("*.py")} - {"__init__", "cli"}


def room_of(name: str) -> str:
    """Return the folder of a module; ``experiments.cli`` lies beside the verbs, which use it, and is a room itself."""
    return name if name == "experiments.cli" else name.rpartition(".")[0]


def test_no_cycle_between_modules():
    TopologicalSorter(GRAPH).prepare()


def test_no_cycle_between_folders():
    rooms: dict[str, set[str]] = {}
    for name, others in GRAPH.items():
        rooms.setdefault(room_of(name), set()).update(map(room_of, others))
    TopologicalSorter({room: others - {room} for room, others in rooms.items()}).prepare()


def test_verbs_are_imported_by_nobody():
    assert {"run", "evaluate", "compare", "generate", "translate", "export", "reproduce", "sweep", "launch"} == VERBS
    for name, others in GRAPH.items():
        assert not others & {f"experiments.{verb}" for verb in VERBS}, name


@pytest.mark.parametrize("package", ["experiments", "datamodules"])
def test_a_room_can_be_looked_over(package):
    for folder in {path.parent for path in (ROOT / package).rglob("*.py")}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 12, folder
        assert sum(map(length, files)) < 2_500, folder


# Files of more than 400 lines, and why they are not two.
LONG = {
    "callbacks/health.py": "a callback is one file",
    "lightning_modules/metrics/re_identification.py": "a metric is one file",
    "lightning_modules/metrics/torchmetrics_scores.py": "the scores that torchmetrics knows, one after the other",
    "lightning_modules/networks/exported.py": "what opens an export needs nothing beside this file and the networks",
}


def length(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_no_file_is_long_without_a_reason():
    long = {str(path.relative_to(ROOT)) for path in FILES if length(path) > 400}
    assert long == LONG.keys()


def test_packages_are_empty_but_for_a_docstring():
    for path in FILES:
        if path.name == "__init__.py":
            assert len(ast.parse(path.read_text()).body) == 1, path


def families() -> dict[str, tuple[type, Path]]:
    """Return the classes of the core and of the families, with their files."""
    from lightning_modules.step import PhasedModule

    found = {}
    for path in (ROOT / "lightning_modules").glob("*.py"):
        module = importlib.import_module(f"lightning_modules.{path.stem}")
        own = [cls for cls in vars(module).values() if inspect.isclass(cls) and cls.__module__ == module.__name__]
        found |= {cls.__name__: (cls, path) for cls in own if issubclass(cls, PhasedModule)}
    return found


def test_nothing_asks_which_family_it_has():
    """What callbacks, scores and verbs do for a family follows from what it can do (``protocols.can``)."""
    from lightning_modules import protocols

    known = {name: path for name, (_, path) in families().items()}
    assert {"DCGAN", "WGANGP", "WGAN", "KidneyGAN", "ProgressiveGAN", "Synthesis", "PhasedModule"} <= set(known)
    # isinstance does not see a module's networks through a Protocol, from Python 3.12 on.
    known |= {name: Path() for name, cls in vars(protocols).items() if getattr(cls, "_is_protocol", False)}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
                parts = [getattr(part, "id", getattr(part, "attr", "")) for part in ast.walk(node.args[1])]
                asked = {part for part in parts if part in known and known[part] != path}
                assert not asked, f"{path}:{node.lineno}: {asked}"


def test_families_are_three_levels_deep_at_most():
    """The step, synthesis or translation, the family."""
    from lightning_modules.step import PhasedModule

    for name, (cls, _) in families().items():
        assert sum(issubclass(base, PhasedModule) for base in cls.__mro__) <= 3, name


def test_no_loss_is_differentiated_behind_the_strategys_back():
    """With several processes ``loss.backward()`` trains a different network on each of them, without an error."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "backward":
                assert "benchmarks" in path.parts, path


def test_show_list_and_help_import_neither_torch_nor_lightning():
    code = (
        "import sys; from experiments import compare, evaluate, export, generate, reproduce, run, sweep, translate\n"
        "for arguments in (['--list'], ['demo', '--show']): assert run.main(arguments) == 0\n"
        "for arguments in (['--list'], ['phantom_families', '--show']): assert sweep.main(arguments) == 0\n"
        "for verb in (evaluate, reproduce): assert verb.main(['--list']) == 0\n"
        "for verb in (compare, evaluate, export, generate, reproduce, translate):\n"
        "    try: verb.main(['--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'lightning', 'monai', 'wandb', 'numpy', 'optuna', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


def test_every_package_yaml_and_page_is_shipped():
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in FILES}
    assert set(settings["packages"]) == packages
    root = ROOT / "experiments"
    folders = {path.parent.relative_to(root).as_posix() for path in root.rglob("*.yaml")}
    pages = ["docs/*.md", "docs/results/*.md"]  # messages name some
    shipped = [*sorted(f"{folder}/*.yaml" for folder in folders), *pages]
    assert settings["package-data"] == {"experiments": shipped}
