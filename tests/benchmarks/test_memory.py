"""The memory of a call is that of its peak; a CPU's allocator does not pretend to count."""

import sys

import pytest
import torch

from benchmarks.memory import extra_bytes, extra_mib, free_bytes

CPU = torch.device("cpu")
MIB = 2**20


# The benchmark reads /proc. Other systems have no file that tells the peak of a process and can be
# reset.
@pytest.mark.skipif(sys.platform != "linux", reason="the pages of a process are read from /proc")
def test_memory_that_a_call_gives_back_counts_at_its_peak():
    def call():
        torch.zeros(64 * MIB, dtype=torch.uint8).add_(1)

    assert 60 <= extra_mib(call) <= 80


def test_memory_is_not_made_up_on_a_cpu():
    assert extra_bytes(lambda: None, CPU) == "the CPU's allocator does not count"
    assert free_bytes(CPU) == float("inf")
