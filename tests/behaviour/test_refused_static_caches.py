"""What a static cache cannot follow is refused by name, before a token is read."""

import pytest
import torch

import kvpolicy
from kvpolicy.errors import CacheStateError, InvalidValueError, UnsupportedModelError
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import generate, read, tokens
from kvpolicy.testing.models import tiny_model
from tests.behaviour.static_caches import static


@pytest.fixture
def model():
    return tiny_model()


def test_generate_is_refused_more_than_the_capacity_before_it_begins(model):
    policy = small_policy("snapkv")
    cache = static(policy, model, capacity=5)
    with pytest.raises(InvalidValueError, match="room for 5"):
        generate(model, cache, tokens(0), max_new_tokens=7)
    assert cache.seen == 0
    found = generate(model, cache, tokens(0), max_new_tokens=6)
    assert torch.equal(found, generate(model, policy.cache(model), tokens(0), max_new_tokens=6))
    assert cache.left == 0
    with pytest.raises(InvalidValueError, match="room for 0"):
        generate(model, cache, found, max_new_tokens=1)


def test_a_token_without_room_is_refused_before_it_is_read(model):
    cache = static(small_policy("adakv"), model, capacity=2)
    read(model, cache, (60, 1, 1))
    with pytest.raises(InvalidValueError, match="capacity=2"):
        read(model, cache, (1,))
    assert cache.seen == 62
    # A prompt makes room again.
    read(model, cache, (20, 1, 1))


@pytest.mark.parametrize("recipe", ["knorm", "adakv", "streamingllm"])
def test_a_ready_mask_of_a_step_is_refused_before_the_token_is_read(recipe, model):
    cache, undisturbed = (static(small_policy(recipe), model) for _ in range(2))
    step, mask = tokens(1, 1), torch.ones(1, 1, 1, 61, dtype=torch.bool)
    for each in (cache, undisturbed):
        model(tokens(0), past_key_values=each)
    with pytest.raises(InvalidValueError, match="given ready"):
        model(step, attention_mask=mask, past_key_values=cache)
    expected = model(step, past_key_values=undisturbed).logits
    assert torch.equal(model(step, past_key_values=cache).logits, expected)


@pytest.mark.parametrize("recipe", ["knorm", "adakv", "streamingllm"])
def test_a_mask_that_hides_older_tokens_from_a_step_is_refused(recipe, model):
    cache, undisturbed = (static(small_policy(recipe), model) for _ in range(2))
    for each in (cache, undisturbed):
        read(model, each, (60, 1))
    step, mask = tokens(1, 1), torch.ones(1, 62, dtype=torch.long)
    hidden = mask.clone()
    hidden[:, :30] = 0
    with pytest.raises(InvalidValueError, match="did not say when they were read"):
        model(step, attention_mask=hidden, past_key_values=cache)
    expected = model(step, past_key_values=undisturbed).logits
    found = model(step, attention_mask=mask, past_key_values=cache).logits
    assert torch.equal(found, expected)


@pytest.mark.parametrize("recipe", ["knorm", "adakv", "streamingllm"])
def test_a_step_of_another_batch_is_refused_before_it_is_read(recipe, model):
    cache, undisturbed = (static(small_policy(recipe), model) for _ in range(2))
    for each in (cache, undisturbed):
        read(model, each, (60, 1))
    with pytest.raises(InvalidValueError, match="has 1 rows, but 3 rows were given"):
        model(tokens(1, 1, 3), past_key_values=cache)
    expected = model(tokens(1, 1), past_key_values=undisturbed).logits
    assert torch.equal(model(tokens(1, 1), past_key_values=cache).logits, expected)


def test_a_closed_cache_refuses_a_step(model):
    cache = static(small_policy("snapkv"), model)
    read(model, cache, (60, 1))
    kvpolicy.restore(model)
    with pytest.raises(CacheStateError, match="was closed"):
        read(model, cache, (1,))


REFUSED = {
    "no capacity": (small_policy("snapkv"), {"capacity": None}, "needs capacity"),
    "capacity alone": (small_policy("snapkv"), {"static": False}, "for static=True only"),
    "capacity of another kind": (small_policy("snapkv"), {"capacity": 0}, "of at least 1, not 0"),
    "another flag": (small_policy("snapkv"), {"static": 1}, "'static' must be True or False"),
    "a storage": (small_policy("snapkv"), {"storage": "offloaded"}, "does not go with"),
    "every fifth token": (small_policy("snapkv", every=5), {}, "every=5"),
    "a share": (small_policy("tova", budget=0.4), {}, "budget=0.4 may keep"),
    "slots": (small_policy("snapkv", slot_positions=True), {}, "slot_positions=True"),
    "running state": (small_policy("h2o", every=None), {}, "running state"),
    "counts that vary": (small_policy("lacache"), {}, "allocator 'lacache'"),
    "draws of the host": (small_policy("cam"), {}, "compactor 'cam'"),
    "uneven heads": (small_policy("snapkv", allocator="adakv", every=1), {}, "allocator 'adakv'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_step_cannot_follow_is_refused_by_name(name, model):
    policy, options, message = REFUSED[name]
    with pytest.raises(InvalidValueError, match=message):
        policy.cache(model, **{"static": True, "capacity": 20} | options)


def test_models_with_other_layers_are_refused():
    with pytest.raises(UnsupportedModelError, match="DynamicSlidingWindowLayer"):
        static(small_policy("snapkv"), tiny_model("gemma3_text"))


@torch.enable_grad()
def test_gradients_are_refused(model):
    cache = static(small_policy("snapkv"), model)
    with torch.no_grad():
        read(model, cache, (60, 1))
    with pytest.raises(InvalidValueError, match="no gradients"):
        read(model, cache, (1,))
