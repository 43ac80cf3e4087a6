import pytest
import torch

import kvpolicy
from benchmarks.eviction_memory import BUDGET, LENGTH, LIMIT, counted_on_a_gpu, extra_bytes
from benchmarks.layers import LayerShape

LAYER = 2 * 2 * 8 * 128 * LENGTH
KEPT = 2 * 2 * 8 * 128 * BUDGET
RECIPES = sorted(each.name for each in kvpolicy.installed() if each.kind == "recipe")


@pytest.mark.sampled(4, "recipe")
@pytest.mark.parametrize("recipe", RECIPES)
def test_evicting_a_layer_takes_an_eighth_of_it_at_most(recipe):
    assert KEPT <= extra_bytes(recipe, LENGTH, LayerShape()) <= LIMIT * LAYER


def test_tensors_on_the_gpu_are_counted_and_read_as_the_budget():
    with counted_on_a_gpu(7) as counted:
        zeros = torch.zeros(1024, dtype=torch.float32, device="cuda")
        assert (zeros + 1).sum().item() == 7
        assert bool((zeros == 0).all())
        assert zeros[:2].cpu().tolist() == [7, 7]
    assert counted.peak >= 2 * zeros.nbytes
