"""The start on a bare machine says how it is called; `make gpu-rehearsal` runs it."""

import subprocess
from pathlib import Path

import pytest

START = Path(__file__).parents[3] / "benchmarks" / "gpu" / "start"


@pytest.mark.parametrize("arguments", [[], ["dist/some.whl"], ["--", "--toy"]])
def test_a_call_without_wheels_or_arguments_is_explained(arguments):
    done = subprocess.run([START, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "benchmarks/gpu/start WHEEL... -- [ARGUMENTS OF python -m benchmarks.gpu]" in done.stderr
