import pytest
import torch

import kvpolicy
from benchmarks.eviction_memory import BUDGET, LENGTH, LIMIT, counted_on_a_gpu, extra_bytes
from benchmarks.layers import LayerShape

LAYER = 2 * 2 * 8 * 128 * LENGTH
QUICK = ("chunkkv", "keydiff", "lagkv", "restkv", "snapkv", "streamingllm")
"""Recipes that read a layer in few blocks, so that counting takes a second."""
QUADRATIC = ("rkv",)
"""Recipes that compare all pairs of keys, block by block: that takes an hour at this length."""
OTHERS = sorted(
    {each.name for each in kvpolicy.installed() if each.kind == "recipe"}.difference(
        QUICK, QUADRATIC
    )
)


# Its matches of evicted and kept keys take 12 bytes for each position and head.
ABOVE = {"lookm": 0.17}


def check(recipe):
    extra = extra_bytes(recipe, LENGTH, LayerShape())
    kept = 2 * 2 * 8 * 128 * BUDGET
    assert kept <= extra <= ABOVE.get(recipe, LIMIT) * LAYER


@pytest.mark.parametrize("recipe", QUICK)
def test_evicting_a_layer_takes_an_eighth_of_it_at_most(recipe):
    check(recipe)


@pytest.mark.deep
@pytest.mark.parametrize("recipe", OTHERS)
def test_evicting_a_layer_takes_an_eighth_of_it_at_most_by_every_recipe(recipe):
    check(recipe)


def test_tensors_on_the_gpu_are_counted_and_read_as_the_budget():
    with counted_on_a_gpu(7) as counted:
        zeros = torch.zeros(1024, dtype=torch.float32, device="cuda")
        assert (zeros + 1).sum().item() == 7
        assert bool((zeros == 0).all())
        assert zeros[:2].cpu().tolist() == [7, 7]
    assert counted.peak >= 2 * zeros.nbytes
