"""The replay sees what is wrong, and measures what seems to be nothing."""

import attrs
import pytest
import torch

from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.exactness.forwards import recorded
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.replay import max_logit_difference
from kvpolicy.exactness.usages import USAGES, small_policy, tokens
from kvpolicy.testing.models import tiny_model


def recorded_turns(model, policy, *lengths):
    """Read turns of so many tokens; return the cache and the recorded forwards."""
    cache = policy.cache(model)
    with recorded(model, cache) as forwards:
        for seed, length in enumerate(lengths):
            model(input_ids=tokens(seed, length), past_key_values=cache)
    return cache, forwards


def test_a_position_that_is_off_by_one_is_seen():
    model = tiny_model("llama")
    cache, forwards = recorded_turns(model, small_policy("restkv"), 60, 5)
    positions = [held.clone() for held in forwards[1].positions]
    positions[0][0, 0, 3] += 1
    moved = [forwards[0], attrs.evolve(forwards[1], positions=positions)]

    assert max_logit_difference(model, forwards, cache) <= LIMIT
    assert max_logit_difference(model, moved, cache) > 10 * LIMIT


def test_a_latent_that_is_off_by_one_is_seen():
    model = tiny_architecture("deepseek_v3")
    cache, forwards = recorded_turns(model, small_policy("restkv"), 60, 5)
    positions = [held.clone() for held in forwards[1].positions]
    assert positions[0].shape == (1, 1, 24)
    gap = int((positions[0][0, 0].diff() > 1).nonzero()[0])
    positions[0][0, 0, gap] += 1
    moved = [forwards[0], attrs.evolve(forwards[1], positions=positions)]

    assert max_logit_difference(model, forwards, cache) <= LIMIT
    assert max_logit_difference(model, moved, cache) > 10 * LIMIT


def test_nothing_evicted_is_nothing_to_measure():
    model = tiny_model("llama")
    cache, forwards = recorded_turns(model, small_policy("restkv"), 20)

    with pytest.raises(ValueError, match="nothing was evicted"):
        max_logit_difference(model, forwards, cache)
    with pytest.raises(ValueError, match="0 forwards"):
        max_logit_difference(model, [], cache)


def test_one_head_of_two_that_has_evicted_is_enough_to_measure():
    model = tiny_model("llama", num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=1)
    # One head may hold 48 positions, more than the prompt has; the other 32.
    uneven = {"name": "headkv", "importance": [[3, 5]], "beta": 1.0, "window": 8}
    policy = small_policy("snapkv", allocator=uneven, budget=40)
    cache, forwards = recorded_turns(model, policy, 45, 1)

    (layer,) = cache.policy_layers
    assert (layer.positions >= 0).sum(-1).tolist() == [[33, 46]]
    assert max_logit_difference(model, forwards, cache) <= LIMIT


@attrs.frozen
class Nothing:
    def allocate(self, scores, observation, budget):
        return torch.zeros(scores.shape[:2], dtype=torch.int64)


def test_layers_that_hold_nothing_are_measured():
    policy = small_policy("snapkv", allocator=Nothing(), recent=0)
    assert USAGES["one prompt"](tiny_model("llama"), policy) <= LIMIT


def test_a_logit_that_is_nan_is_not_exact():
    model = tiny_model("llama")
    cache, forwards = recorded_turns(model, small_policy("restkv"), 60, 1)
    forwards[1].logits[0, 0, 0] = torch.nan

    assert not max_logit_difference(model, forwards, cache) <= LIMIT


def test_the_model_is_left_as_it_was_found():
    model = tiny_model("llama")
    cache, forwards = recorded_turns(model, small_policy("restkv"), 60, 1)
    found = model.config._attn_implementation
    max_logit_difference(model, forwards, cache)
    assert model.config._attn_implementation == found


def test_slots_of_an_unknown_rotation_are_not_measured():
    model = tiny_model("gemma")
    policy = small_policy("snapkv", slot_positions=True)
    cache, forwards = recorded_turns(model, policy, 60, 1)
    with pytest.raises(ValueError, match="does not know how Gemma"):
        max_logit_difference(model, forwards, cache)


@pytest.mark.filterwarnings("ignore")
def test_slots_of_a_model_that_rotates_few_channels_are_measured():
    model = tiny_architecture("qwen3_next")
    policy = small_policy("snapkv", slot_positions=True)
    cache, forwards = recorded_turns(model, policy, 60, 1, 5)
    assert max_logit_difference(model, forwards, cache) <= LIMIT
