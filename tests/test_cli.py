"""`kvpolicy list` shows what is installed; mistakes end in one sentence, not in a traceback."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from kvpolicy import cli


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
        ["compactor", name] for name in ("cam", "gather", "lookm", "think")
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
    assert run("lits").exit_code == 2


def test_without_a_command_it_says_what_there_is(run):
    assert "List the parts and recipes that are installed." in run().output


def test_python_m_kvpolicy_is_the_same_command():
    command = [sys.executable, "-m", "kvpolicy", "list", "selector"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "topk" in result.stdout
