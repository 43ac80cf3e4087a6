"""What runs for a change on GitHub is what `.ci/run` and the Makefile run, on each Python."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
JOBS = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text("utf-8"))["jobs"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
CLASSIFIERS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["classifiers"]


def commands(job):
    return [step["run"] for step in JOBS[job]["steps"] if "run" in step]


def test_the_tests_are_those_of_ci_on_every_python_that_is_supported():
    assert commands("tests") == ["bash .ci/run"]
    supported = [each.rpartition(" ")[2] for each in CLASSIFIERS if re.search(r":: 3\.\d", each)]
    assert JOBS["tests"]["strategy"]["matrix"]["python"] == supported


@pytest.mark.parametrize("job", ["lint", "oldest", "newest", "build"])
def test_the_other_jobs_make_what_the_makefile_has(job):
    for command in commands(job):
        make, *targets = command.split()
        assert make == "make"
        assert set(targets) <= TARGETS


def test_what_ci_runs_is_a_target():
    last = (ROOT / ".ci/run").read_text("utf-8").splitlines()[-1]
    assert last.split()[0] == "make"
    assert last.split()[1] in TARGETS
