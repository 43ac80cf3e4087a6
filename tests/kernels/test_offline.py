"""Every kernel compiles for real, for GPUs that need not be here."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOMS = sorted(
    path.parent.name for path in (HERE.parents[1] / "kernels").glob("kvpolicy_kernels/*/kernel.py")
)


# A large room takes half a minute to compile whole.
@pytest.mark.parametrize(
    ("capability", "every"),
    [(90, 4), *(pytest.param(each, 1, marks=pytest.mark.deep) for each in (80, 90))],
)
@pytest.mark.parametrize("room", ROOMS)
def test_the_kernels_of_a_room_compile_without_spills(room, capability, every, tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {
        "PYTHONPATH": ":".join(filter(None, sys.path)),
        "TRITON_CACHE_DIR": str(tmp_path),
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    result = subprocess.run(
        [sys.executable, HERE / "compile_offline.py", room, str(capability), str(every)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stderr
    assert f"sm_{capability}" in result.stdout
