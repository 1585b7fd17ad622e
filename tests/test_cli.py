"""What the command lines share."""

import logging

import pytest

from experiments import cli
from experiments.configuration.files import SUITES


def test_what_is_logged_holds_no_secret(monkeypatch, capsys):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # the tests' own
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    monkeypatch.setenv("HF_TOKEN", "hunter2-and-more")
    cli.log_to_terminal()
    logging.getLogger("library").warning("token=%s", "hunter2-and-more")
    logging.getLogger("library").info("not asked for")
    said = capsys.readouterr().err
    assert said.startswith("token=") and "hunter2" not in said and "not asked for" not in said


@pytest.mark.parametrize(
    ("problems", "first"), [(["a"], "error in file.yaml:"), (["a", "b"], "2 errors in file.yaml:")]
)
def test_refusals_name_the_file_and_each_problem_on_a_line(problems, first, capsys):
    assert cli.refuse("file.yaml", problems) == cli.EXIT_BAD_CONFIG == 2
    assert capsys.readouterr().err.splitlines() == [first, *(f"  {problem}" for problem in problems)]


def test_what_is_shipped_is_listed_in_columns(capsys):
    assert cli.list_shipped(SUITES) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 6 and all(line[0] != " " for line in lines)
    starts = {len(line) - len(line[len(line.split()[0]) :].lstrip()) for line in lines}
    assert len(starts) == 1  # every description begins in one column


def test_a_node_is_shown_as_yaml(capsys):
    assert cli.show({"a": {"b": [1, None]}}) == 0
    assert capsys.readouterr().out == "a:\n  b:\n  - 1\n  - null\n"


def test_a_failure_and_an_interruption_have_codes_of_their_own(capsys):
    assert (cli.fail("the disk is full"), cli.interrupted()) == (1, 85)
    assert capsys.readouterr().err == "error: the disk is full\n\ninterrupted; the same command goes on\n"
