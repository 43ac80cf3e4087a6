"""A cache that evicts while decoding does not grow."""

import pytest
import torch

from benchmarks.endurance import RECIPES, sizes


@pytest.mark.parametrize("recipe", RECIPES)
def test_bytes_do_not_grow_after_the_first_tokens(recipe):
    budget = 24
    with torch.no_grad():
        found = sizes(recipe, tokens_decoded=80, budget=budget)
    assert len(found) == 80
    assert max(found) == max(found[: budget + 1])
