"""What an eviction launches hardly grows with the prompt."""

import pytest

from benchmarks.waits.__main__ import recipes
from benchmarks.waits.lengths import GROWTH, LENGTHS, eviction

WAITS = {"adakv": 1, "defensivekv": 1, "kvzip": 1, "kvzipplus": 1, "layerdefensivekv": 1, "lava": 1}

MOST = 60
MORE = {"lava": 69, "rkv": 66}
"""lava's allocator runs once for all layers of a model, and here for one.

rkv computes a long prompt in more blocks than a short one.
"""


@pytest.mark.sampled(4, "recipe")
@pytest.mark.parametrize("recipe", recipes())
def test_a_long_prompt_launches_as_much_as_a_short_one(recipe):
    short, long = (eviction(recipe, length) for length in LENGTHS)
    assert short.launches <= long.launches <= GROWTH * short.launches
    assert long.launches <= MORE.get(recipe, MOST)
    assert short.waits == long.waits == WAITS.get(recipe, 0)
