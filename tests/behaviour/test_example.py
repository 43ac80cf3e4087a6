"""The example plugin works as the project of its own that a third party would copy."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "kvpolicy-recency"
pytestmark = pytest.mark.xdist_group("example")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Return a new environment with wheels of kvpolicy and of the example installed."""
    folder = tmp_path_factory.mktemp("third-party") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    [packages] = folder.glob("lib/python*/site-packages")
    # Everything else comes from the environment of the tests; its editable kvpolicy does not.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    source = ["--no-deps", "--no-index", "--no-build-isolation", "--target", packages]
    run(*pip, *source, ROOT, EXAMPLE)
    return folder


def test_the_plugin_is_found_through_its_entry_point(environment):
    data = json.loads(run(environment / "bin" / "python", "-m", "kvpolicy", "list", "--json"))
    assert data["broken"] == []
    mine = [each for each in data["components"] if each["distribution"] == "kvpolicy-recency"]
    assert [(each["kind"], each["name"]) for each in mine] == [
        ("scorer", "recency"),
        ("recipe", "recency"),
    ]


def test_the_plugin_keeps_the_contract(environment, tmp_path):
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    run(environment / "bin" / "python", "-m", "pytest", "-q", tmp_path / "tests", cwd=tmp_path)


def test_the_wheel_of_kvpolicy_holds_every_file_of_its_packages(environment):
    [packages] = environment.glob("lib/python*/site-packages")
    sources = [ROOT / "kvpolicy", *(ROOT / "kernels").iterdir(), *(ROOT / "plugins").iterdir()]
    for package in sources:
        missing = files_in(package) - files_in(packages / package.name)
        assert not missing, f"{package.name} lacks {sorted(map(str, missing))}"
    assert (packages / "kvpolicy" / "py.typed").is_file()


def files_in(package):
    files = {path.relative_to(package) for path in package.rglob("*") if path.is_file()}
    return {path for path in files if "__pycache__" not in path.parts}


def run(*command, cwd=None):
    """Run a command away from this checkout, and return what it printed."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
