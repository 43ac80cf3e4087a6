"""What an eviction launches does not grow with the prompt, but where it is known to."""

import pytest

from benchmarks.waits.__main__ import recipes
from benchmarks.waits.lengths import GROWTH, LENGTHS, eviction

GROWS = {"expectedattention": 3.6}
"""By recipe: how many times the launches of 4,096 positions those of 131,072 are at most.

Tables of cosines for every position are made in parts that fit into an eighth of the layer.
"""
WAITS = {"adakv": 1, "defensivekv": 1, "layerdefensivekv": 1, "lacache": 1, "lava": 1}


@pytest.mark.sampled(4, "recipe")
@pytest.mark.parametrize("recipe", recipes())
def test_a_long_prompt_launches_as_much_as_a_short_one(recipe):
    short, long = (eviction(recipe, length) for length in LENGTHS)
    assert short.launches <= long.launches <= GROWS.get(recipe, GROWTH) * short.launches
    assert short.waits == long.waits == WAITS.get(recipe, 0)
