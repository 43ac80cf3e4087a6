"""Every kernel compiles for real, for GPUs that need not be here."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOMS = sorted(
    path.parent.name for path in (HERE.parents[1] / "kernels").glob("kvpolicy_kernels/*/kernel.py")
)


@pytest.mark.deep
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("room", ROOMS)
def test_the_kernels_of_a_room_compile_without_spills(room, capability, tmp_path):
    """A large room takes half a minute."""
    report = _compiled([room], capability, every=1, cache=tmp_path)
    assert f"sm_{capability}" in report


def test_a_sample_of_the_kernels_of_each_room_compiles_without_spills(tmp_path):
    report = _compiled(ROOMS, 90, every=13, cache=tmp_path)
    assert report.count("sm_90") >= len(ROOMS)


def _compiled(rooms, capability, *, every, cache):
    """Compile one variant of `every` of each room; return what they use."""
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {
        "PYTHONPATH": ":".join(filter(None, sys.path)),
        "TRITON_CACHE_DIR": str(cache),
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    result = subprocess.run(
        [sys.executable, HERE / "compile_offline.py", ",".join(rooms), str(capability), str(every)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stderr
    return result.stdout
