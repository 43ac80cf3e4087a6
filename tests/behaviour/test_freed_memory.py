"""What is evicted takes no memory: not after a forward, and not while later layers read."""

import gc
import warnings

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import tokens
from kvpolicy.testing.models import tiny_model

LAYERS, LONG = 4, 100
"""More rows than a layer holds after an eviction, slack included."""


@pytest.fixture(autouse=True)
def only_what_a_test_makes():
    """Leave what other tests left behind alone: to look at it takes longer than the test.

    It stays frozen, as what was imported does: see tests/conftest.py.
    """
    gc.collect()
    gc.freeze()


def long_tables():
    """Return the tables of keys or values with many rows that are alive, whoever holds them."""
    gc.collect()
    found = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some objects warn when they are asked for their class
        # Not the tensors without memory that compiled models leave behind: they have a class apart.
        tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor]
    for each in tensors:
        if each.dim() == 4 and each.shape[1] == 2:  # key/value heads; there are 4 query heads
            storage = each.untyped_storage()
            if storage.nbytes() >= 2 * LONG * each.shape[3] * each.element_size():
                found.add(storage.data_ptr())
    return found


@pytest.mark.parametrize("storage", [None, "quantized", "offloaded"])
@pytest.mark.parametrize("recipe", ["snapkv", "adakv", "h2o", "streamingllm", "layerdefensivekv"])
def test_nothing_of_what_was_evicted_stays_alive(recipe, storage):
    before, model = long_tables(), tiny_model("llama")
    cache = small_policy(recipe).cache(model, storage=storage)
    for seed, length in enumerate((300, 200, 1)):
        model(tokens(seed, length), past_key_values=cache)
        assert long_tables() <= before


@attrs.frozen
class Watching:
    """Scores by attention, and counts the long tables that are alive in each layer's turn."""

    before: set
    counts: list = attrs.field(factory=list)
    window: int = 8

    def score(self, observation, reduce):
        self.counts.append(len(long_tables() - self.before))
        return observation.folded_attention(reduce)


@pytest.mark.parametrize("slot_positions", [False, True])
def test_a_layer_is_evicted_before_the_next_one_takes_memory(slot_positions):
    before, model = long_tables(), tiny_model("llama", num_hidden_layers=LAYERS)
    scorer = Watching(before)
    policy = kvpolicy.compose(scorer=scorer, budget=24, slot_positions=slot_positions)
    cache = policy.cache(model)
    for seed, length in enumerate((300, 200)):
        scorer.counts.clear()
        model(tokens(seed, length), past_key_values=cache)
        assert len(scorer.counts) == LAYERS
        # The model itself holds keys and values of the layer that reads, before and after rotation.
        assert scorer.counts == [scorer.counts[0]] * LAYERS
        assert scorer.counts[0] <= 6
