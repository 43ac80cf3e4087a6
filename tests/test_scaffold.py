"""A new plugin of every kind is a whole project, and its contract passes as it is."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kvpolicy
from kvpolicy.discovery.registry import broken
from kvpolicy.errors import InvalidValueError
from kvpolicy.scaffold import EXAMPLES, new_plugin, rendered
from kvpolicy.testing.promises import PROMISES

NAME = "brand_new"


@pytest.fixture
def offered(install_plugin):
    """Install a new plugin, and return what it offers."""

    def install(kind):
        install_plugin(NAME, rendered(NAME, kind)[f"kvpolicy_{NAME}.py"])
        assert broken() == ()
        return [each for each in kvpolicy.installed() if each.plugin == NAME]

    return install


@pytest.mark.parametrize("kind", EXAMPLES)
def test_its_parts_are_found_and_keep_each_promise_on_an_example(kind, offered):
    found = offered(kind)
    assert [each.kind for each in found] == [kind, *["recipe"] * bool(EXAMPLES[kind].recipe)]
    for component in found:
        for promise in PROMISES[component.kind]:
            promise.quickened(0)(component.build())


@pytest.mark.deep
@pytest.mark.parametrize("kind", EXAMPLES)
def test_its_parts_keep_the_whole_contract(kind, offered):
    for component in offered(kind):
        for promise in PROMISES[component.kind]:
            promise(component.build())


@pytest.mark.parametrize("kind", EXAMPLES)
def test_the_project_is_complete_and_in_good_style(kind, tmp_path):
    files = new_plugin(NAME, kind, tmp_path)
    project = tmp_path / "kvpolicy-brand-new"
    assert {str(each.relative_to(project)) for each in files} == {
        *(f"kvpolicy_{NAME}.py", "README.md", "pyproject.toml", "tests/test_contract.py"),
        ".github/workflows/tests.yml",
    }
    data = tomllib.loads((project / "pyproject.toml").read_text())
    assert data["project"]["entry-points"]["kvpolicy"] == {NAME: f"kvpolicy_{NAME}"}
    assert EXAMPLES[kind].equation in (project / "README.md").read_text()
    for command in (["format", "--check"], ["check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "--isolated"]
        done = subprocess.run(
            [*ruff, "--line-length=100", project], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("mine", "scorers", "Did you mean 'scorer'?"),
        *((name, "scorer", "lower-case letters") for name in ("", "A", "1a", "a-b", "a__b", "_a")),
        ("a" * 41, "scorer", "at most 40"),
    ],
)
def test_what_cannot_be_is_refused(name, kind, sentence, tmp_path):
    with pytest.raises(InvalidValueError, match=sentence.replace("?", r"\?")):
        new_plugin(name, kind, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_alone(tmp_path):
    new_plugin("mine", "scorer", tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(InvalidValueError, match="exists already"):
        new_plugin("mine", "task", tmp_path)
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_the_command_writes_the_project(run, tmp_path):
    result = run("new-plugin", "mine", "--kind", "smoother", "--folder", str(tmp_path))
    assert result.exit_code == 0
    assert all(Path(line).is_file() for line in result.stdout.splitlines())
    assert "KVPOLICY_CONTRACT=quick pytest" in result.stderr
