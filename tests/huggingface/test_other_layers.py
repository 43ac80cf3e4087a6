"""A refused forward takes the new tokens back from layers that do not evict, too."""

import weakref

import pytest
import torch

from kvpolicy.errors import CacheStateError, InvalidValueError
from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.exactness.usages import small_policy, tokens
from tests.model_types import needs_type


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def refuse_a_turn(model, cache):
    """Give the cache a turn whose mask hides tokens that were seen before."""
    mask = torch.ones(1, cache.seen + 7, dtype=torch.long)
    mask[:, 2:9] = 0
    with pytest.raises(InvalidValueError, match="says of earlier tokens"):
        model(tokens(1, 7), attention_mask=mask, past_key_values=cache)


# Layer 0 of these has a window.
@pytest.mark.parametrize("model_type", ["gemma3_text", "gemma3n_text", "cohere2"])
def test_the_conversation_goes_on_behind_a_refused_turn(model_type):
    needs_type(model_type)
    model = tiny_architecture(model_type)
    cache, undisturbed = (small_policy("snapkv").cache(model) for _ in range(2))
    for each in (cache, undisturbed):
        model(tokens(0), past_key_values=each)
    refuse_a_turn(model, cache)
    assert cache.seen == undisturbed.seen
    expected = model(tokens(1, 7), past_key_values=undisturbed).logits
    assert torch.equal(model(tokens(1, 7), past_key_values=cache).logits, expected)


@pytest.mark.parametrize("length", [1, 7])
def test_another_batch_is_refused_before_a_window_reads_it(length):
    model = tiny_architecture("gemma3_text")
    cache, undisturbed = (small_policy("snapkv").cache(model) for _ in range(2))
    for each in (cache, undisturbed):
        model(tokens(0), past_key_values=each)
    with pytest.raises(InvalidValueError, match="has 1 rows, but 2 rows were given"):
        model(tokens(1, length, 2), past_key_values=cache)
    expected = model(tokens(1, 7), past_key_values=undisturbed).logits
    assert torch.equal(model(tokens(1, 7), past_key_values=cache).logits, expected)


def test_a_cache_that_refused_its_first_prompt_is_empty():
    model = tiny_architecture("gemma3_text")
    policy = small_policy("snapkv", budget=0.5)
    cache = policy.cache(model, spans={"image": (0, 30)}, protect=["image"])
    with pytest.raises(InvalidValueError, match="Raise the budget"):
        model(tokens(0), past_key_values=cache)
    assert (cache.seen, cache.nbytes) == (0, 0)


def test_behind_a_refused_turn_and_a_reset_no_window_is_kept_alive():
    model = tiny_architecture("gemma3_text")
    cache = small_policy("snapkv").cache(model)
    model(tokens(0), past_key_values=cache)
    refuse_a_turn(model, cache)
    window = weakref.ref(cache.layers[0].keys)
    assert window() is not None
    cache.reset()
    assert window() is None


def test_layers_that_write_into_their_state_are_not_given_back():
    needs_type("qwen3_next")
    model = tiny_architecture("qwen3_next")
    cache, fresh = (small_policy("snapkv").cache(model) for _ in range(2))
    model(tokens(0), past_key_values=cache)
    refuse_a_turn(model, cache)
    with pytest.raises(CacheStateError, match=r"says of earlier tokens.*Call cache.reset\(\)"):
        model(tokens(1, 7), past_key_values=cache)
    cache.reset()
    found, expected = (model(tokens(0), past_key_values=each).logits for each in (cache, fresh))
    assert torch.equal(found, expected)
