"""`kvpolicy list` shows what is installed; mistakes end in one sentence, not in a traceback."""

import inspect
import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

import kvpolicy
from kvpolicy import cli
from kvpolicy.commands.list import table_lines


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(cli.app, arguments)


def test_list_shows_kind_name_origin_and_options(run):
    result = run("list")
    assert result.exit_code == 0
    [line] = [line for line in result.output.splitlines() if "topk" in line]
    assert line.split() == ["selector", "topk", "kvpolicy", "0.1.0"]
    assert "window=32" in result.output


def test_list_can_be_of_one_kind(run):
    lines = run("list", "compactor").output.splitlines()
    named = [line.split()[:2] for line in lines if not line.startswith(" ")]
    assert named == [["kind", "name"]] + [
        ["compactor", name]
        for name in ("attentionmatching", "cam", "gather", "grkv", "lookm", "momentkv", "think")
    ]


def test_list_as_json_is_data(run):
    data = json.loads(run("list", "scorer", "--json").output)
    [snapkv] = [each for each in data["components"] if each["name"] == "snapkv"]
    assert snapkv == {
        "kind": "scorer",
        "name": "snapkv",
        "plugin": "snapkv",
        "distribution": "kvpolicy",
        "version": "0.1.0",
        "options": {"window": 32},
    }
    assert data["broken"] == []


def test_list_ends_with_the_broken_plugins(run, install_plugin):
    install_plugin("faulty", "import not_there_at_all")
    last = run("list").output.splitlines()[-1]
    assert last.startswith("broken 'faulty' (kvpolicy-faulty 1.0): ModuleNotFoundError")


def test_broken_plugins_are_in_the_data_as_well(run, install_plugin):
    install_plugin("faulty", "import not_there_at_all")
    [faulty] = json.loads(run("list", "--json").output)["broken"]
    assert faulty["name"] == "faulty"
    assert "not_there_at_all" in faulty["reason"]


def test_options_without_a_default_are_marked(run, install_plugin):
    install_plugin(
        "needy",
        """
        import kvpolicy

        def make(*, path):
            raise NotImplementedError

        @kvpolicy.hookimpl
        def kvpolicy_scorers():
            return {"needy": make}
        """,
    )
    assert "path (required)" in run("list", "scorer").output
    components = json.loads(run("list", "scorer", "--json").output)["components"]
    assert {"path": "required"} in [each["options"] for each in components]


def test_a_mistake_is_one_sentence_and_status_2(run):
    result = run("list", "scorers")
    assert result.exit_code == 2
    assert result.output.startswith("there is no kind of component called 'scorers'. Did you mean")
    assert len(result.output.splitlines()) == 1


def test_an_unknown_command_is_status_2(run):
    result = run("lits")
    assert result.exit_code == 2
    # Newer versions of typer ask whether 'list' was meant.
    assert "No such command 'lits'" in result.output


def test_the_help_page_says_of_each_command_what_its_own_page_says(run):
    for name, summary in cli.COMMANDS.items():
        module = import_module(f"kvpolicy.commands.{name.replace('-', '_')}")
        [command] = module.app.registered_commands
        assert inspect.getdoc(command.callback).splitlines()[0] == summary


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_a_page_of_help(run, option):
    for name in (each for each in cli.COMMANDS if each != "lm-eval"):
        result = run(name, option)
        assert (result.exit_code, "Usage:" in result.output) == (0, True)


def test_the_version_is_that_of_the_distribution(run):
    assert run("--version").output == f"kvpolicy {kvpolicy.__version__}\n"
    assert kvpolicy.__version__ == version("kvpolicy")


def test_an_interrupt_is_no_traceback(run, monkeypatch):
    def interrupt(kind):
        raise KeyboardInterrupt

    monkeypatch.setattr("kvpolicy.commands.list.installed", interrupt)
    result = run("list")
    assert (result.exit_code, result.output.strip()) == (130, "interrupted")


def test_in_a_pipe_each_part_is_one_line(run):
    lines = run("list", "scorer").output.splitlines()
    assert len(lines) == 1 + len(kvpolicy.installed("scorer"))


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_terminal_shows_options_in_its_width(width):
    options = ", ".join(f"option{at}={at}" for at in range(12))
    lines = table_lines([("kind", "name", "options"), ("scorer", "x" * 30, options)], width)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    assert words == ["kind", "name", "options", "scorer", "x" * 30, *options.split()]


def test_without_a_command_it_says_what_there_is(run):
    assert "List the parts and recipes that are installed." in run().output


def test_a_reader_that_has_gone_is_no_traceback():
    read, written = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "kvpolicy", "--help"]
    with os.fdopen(written, "wb") as pipe:
        result = subprocess.run(
            command, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
    assert (result.returncode, result.stderr) == (1, "")


def test_python_m_kvpolicy_is_the_same_command():
    command = [sys.executable, "-m", "kvpolicy", "list", "selector"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "topk" in result.stdout
