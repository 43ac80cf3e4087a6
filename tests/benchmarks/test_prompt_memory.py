"""The memory of ranking a prompt stays near that of a few blocks."""

import pytest

from benchmarks.prompt_memory import LIMIT, _in_a_process


@pytest.mark.deep
@pytest.mark.parametrize("recipe", ["h2o", "lookm"])
def test_a_longer_second_prompt_takes_no_more(recipe):
    for peak, kept in _in_a_process(recipe, "30000,36000"):
        assert kept <= peak <= LIMIT


def test_a_prompt_is_measured_in_a_process_of_its_own():
    ((first, _), (second, kept)) = _in_a_process("snapkv", "4000,6000")
    assert 0 <= first <= LIMIT
    # Memory of the first prompt may be given back during the second one.
    assert kept <= second <= LIMIT
