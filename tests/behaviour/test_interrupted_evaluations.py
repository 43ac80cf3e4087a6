"""`kvpolicy eval` that is killed and started again, or run twice at once, gives the same rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import torch

import kvpolicy
from kvpolicy.errors import ResultsCutWarning
from kvpolicy.evaluation import needle

TIMES = ("first_seconds", "token_seconds")
TASK = {"name": "needle", "length": 96, "facts": 4, "num_samples": 3}
ARGUMENTS = (
    *("--model", str(needle.MODEL), "--task", "needle", "--recipes", "restkv,snapkv"),
    *("--budgets", "48,50%", "--question", "outside"),
    *(f"--option={name}={value}" for name, value in TASK.items() if name != "name"),
)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The rows of a run that nothing interrupts."""
    return evaluated(tmp_path_factory.mktemp("unbroken") / "rows.jsonl")


def evaluated(file):
    kvpolicy.evaluate(
        *needle.load(),
        tasks=[TASK],
        recipes=["restkv", "snapkv"],
        budgets=[48, 0.5],
        question="outside",
        results=file,
    )
    return rows_of(file)


def started(file):
    """Run the command in a process of its own, with as many threads as this one has."""
    return subprocess.Popen(
        [sys.executable, "-m", "kvpolicy", "eval", *ARGUMENTS, "--output", file],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )


TWO = """
import os, sys
import kvpolicy.cli, kvpolicy.commands.engines, kvpolicy.commands.eval, kvpolicy.evaluation.evaluate
from transformers import LlamaForCausalLM
other = os.fork()
try:
    kvpolicy.cli.main()
except SystemExit as ended:
    status = ended.code or 0
if other == 0:
    os._exit(status)
assert (status, os.waitpid(other, 0)[1]) == (0, 0)
assert "ray" not in sys.modules, "an evaluation without a cluster imports nothing of Ray"
"""


def two_started(file):
    """Run the command in two processes at once; they share the time that importing takes."""
    return subprocess.run(
        [sys.executable, "-c", TWO, "eval", *ARGUMENTS, "--output", file],
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )


def rows_of(file):
    return {row["key"]: row for row in map(json.loads, file.read_text().splitlines())}


def untimed(rows):
    return {
        key: {name: value for name, value in row.items() if name not in TIMES}
        for key, row in rows.items()
    }


def test_a_run_that_is_killed_goes_on_to_the_rows_of_an_unbroken_one(unbroken, tmp_path):
    file = tmp_path / "rows.jsonl"
    with started(file) as running:
        while running.poll() is None and not (file.exists() and file.read_bytes().count(b"\n") > 4):
            time.sleep(0.005)
        running.kill()
    before = file.read_bytes()
    assert 4 < before.count(b"\n") < len(unbroken)
    rows = evaluated(file)
    assert file.read_bytes().startswith(before)
    assert file.read_bytes().count(b"\n") == len(rows) == len(unbroken)
    assert untimed(rows) == untimed(unbroken)


def test_two_runs_at_once_write_each_row_once(unbroken, tmp_path):
    file = tmp_path / "rows.jsonl"
    both = two_started(file)
    assert both.returncode == 0, both.stderr
    assert file.read_bytes().count(b"\n") == len(unbroken)
    assert untimed(rows_of(file)) == untimed(unbroken)


def test_a_file_cut_in_the_middle_of_a_row_is_said_and_made_whole(unbroken, tmp_path):
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps(row) + "\n" for row in unbroken.values()]
    file.write_text("".join(lines)[:-100])
    with pytest.warns(ResultsCutWarning, match="ended in the middle of a row"):
        rows = evaluated(file)
    assert file.read_text().startswith("".join(lines[:-1]))
    assert untimed(rows) == untimed(unbroken)
