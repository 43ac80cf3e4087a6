"""Every kernel compiles for real, for GPUs that need not be here."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOMS = sorted(
    path.parent.name for path in (HERE.parents[1] / "kernels").glob("kvpolicy_kernels/*/kernel.py")
)


@pytest.mark.parametrize("room", ROOMS)
def test_the_kernels_of_a_room_compile_without_spills(room, tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {
        "PYTHONPATH": ":".join(filter(None, sys.path)),
        "TRITON_CACHE_DIR": str(tmp_path),
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    result = subprocess.run(
        [sys.executable, HERE / "compile_offline.py", room],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stderr
    assert "sm_80" in result.stdout
    assert "sm_90" in result.stdout
