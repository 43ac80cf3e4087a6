"""The benchmark of memory-efficient attention runs."""

import sys

import pytest

from benchmarks import attention_memory


# The benchmark reads /proc. Other systems have no file that tells the peak of a process and can be
# reset.
@pytest.mark.skipif(sys.platform != "linux", reason="the pages of a process are read from /proc")
@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize("model_type", attention_memory.MODELS)
def test_a_prompt_is_measured(model_type, efficient):
    peak, seconds = attention_memory.measured(model_type, 200, efficient)
    assert peak >= 0
    assert seconds > 0
