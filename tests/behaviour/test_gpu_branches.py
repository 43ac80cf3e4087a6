"""Where code takes another way on a GPU, it keeps the same positions: shown on a pretended one."""

import attrs
import pytest
import torch

import kvpolicy
from benchmarks.waits.__main__ import recipes
from benchmarks.waits.forwards import BUDGET, LENGTH, counting
from benchmarks.waits.pretended import Pretended, numbers_of
from kvpolicy.cache.eviction.one_layer import evicted
from kvpolicy.pipeline.doubts import Doubts, collected
from kvpolicy.testing import observation

TENSORS = ("queries", "keys", "values", "positions", "output_weight")


def layer_of(policy):
    window = policy.scorer.window
    running = policy.running_scorer is not None
    shown = LENGTH if running or window is None else window
    return observation(positions=LENGTH, window=shown, budget=BUDGET, num_layers=4)


@pytest.mark.sampled(3, "recipe")
@pytest.mark.parametrize("recipe", recipes())
def test_a_gpu_keeps_what_a_cpu_keeps(recipe):
    policy = kvpolicy.recipe(recipe, budget=BUDGET)
    layer = layer_of(policy)
    expected = evicted(policy, layer)
    on_gpu = {
        name: Pretended(getattr(layer, name).clone())
        for name in TENSORS
        if getattr(layer, name) is not None
    }
    with counting(), collected(Doubts()), torch.no_grad():
        found = evicted(policy, attrs.evolve(layer, **on_gpu))
        positions = found.positions.cpu()
    assert torch.equal(positions, expected.positions)
    if found.ragged is None:
        # Some recipes merge what they evict into what they keep.
        for ours, theirs in ((found.keys, expected.keys), (found.values, expected.values)):
            torch.testing.assert_close(numbers_of(ours.view), theirs.view, rtol=1e-5, atol=1e-6)
