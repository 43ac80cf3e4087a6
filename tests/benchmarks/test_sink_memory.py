"""The benchmark of attention with sinks runs."""

import sys

import pytest

from benchmarks import sink_memory


# The benchmark reads /proc, which only Linux has.
@pytest.mark.skipif(sys.platform != "linux", reason="the pages of a process are read from /proc")
@pytest.mark.parametrize("fused", [False, True])
def test_a_prompt_is_measured(fused):
    peak, seconds = sink_memory.measured(200, fused)
    assert peak >= 0
    assert seconds > 0
