"""A layer takes what fits it; what does not fit is refused before anything is written."""

import pytest
import torch

from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import tokens
from kvpolicy.testing.models import tiny_model

RECIPES = pytest.mark.parametrize("recipe", ["snapkv", "adakv", "h2o"])


def _read(model, cache, seed=0, length=60, batch=1):
    with torch.no_grad():
        return model(tokens(seed, length, batch), past_key_values=cache).logits


@pytest.mark.sampled(3, "recipe", "others", "storage")
@RECIPES
@pytest.mark.parametrize(("rows", "others"), [(1, 2), (2, 1), (2, 3)])
@pytest.mark.parametrize("storage", [None, "quantized", "offloaded"])
def test_another_batch_is_refused_and_the_conversation_goes_on(recipe, rows, others, storage):
    model, policy = tiny_model("llama"), small_policy(recipe)
    cache, undisturbed = (policy.cache(model, storage=storage) for _ in range(2))
    _read(model, cache, batch=rows)
    _read(model, undisturbed, batch=rows)
    for length in (1, 4):
        with pytest.raises(InvalidValueError, match=f"has {rows} rows, but {others} rows"):
            _read(model, cache, 1, length, others)
    found, expected = (_read(model, each, 2, 1, rows) for each in (cache, undisturbed))
    assert torch.equal(found, expected)


@RECIPES
def test_keys_of_other_heads_are_refused(recipe):
    model = tiny_model("llama")
    cache = small_policy(recipe).cache(model)
    _read(model, cache)
    with pytest.raises(InvalidValueError, match="has 2 key/value heads in this cache, but 4"):
        cache.update(torch.zeros(1, 4, 1, 8), torch.zeros(1, 4, 1, 8), 0)
    assert cache.get_seq_length() == 60
    _read(model, cache, 1, 1)


def test_keys_and_values_of_different_lengths_are_refused():
    cache = small_policy("snapkv").cache(tiny_model("llama"))
    with pytest.raises(InvalidValueError, match="with the same batch, heads"):
        cache.update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 4, 8), 0)
    assert cache.get_seq_length() == 0


def test_another_model_with_a_cache_of_its_own_is_refused_and_the_conversation_goes_on():
    model, other = tiny_model("llama"), tiny_model("llama")
    policy = small_policy("snapkv")
    cache, undisturbed, of_other = policy.cache(model), policy.cache(model), policy.cache(other)
    _read(model, cache)
    _read(model, undisturbed)
    with pytest.raises(UnsupportedModelError, match="was made for another model"):
        _read(other, cache, 1, 3)
    _read(other, of_other)
    assert torch.equal(_read(model, cache, 1, 3), _read(model, undisturbed, 1, 3))


def test_a_used_cache_given_to_another_model_says_so_first():
    model, other = tiny_model("llama"), tiny_model("llama", num_hidden_layers=3)
    policy = small_policy("snapkv")
    cache, of_other = policy.cache(model), policy.cache(other)
    _read(model, cache)
    with pytest.raises(UnsupportedModelError, match="was made for another model"):
        _read(other, cache, 1, 3)
    del of_other


@pytest.mark.parametrize("recipe", ["snapkv", "adakv"])
@pytest.mark.parametrize(
    ("channels", "dtype", "told"),
    [
        (16, torch.float32, "keys of 8 channels in torch.float32, but 16 channels"),
        (8, torch.float16, "8 channels in torch.float16 were given"),
    ],
)
def test_other_channels_and_dtypes_are_refused(recipe, channels, dtype, told):
    model = tiny_model("llama")
    cache, undisturbed = (small_policy(recipe).cache(model) for _ in range(2))
    _read(model, cache)
    _read(model, undisturbed)
    new = torch.zeros(1, 2, 1, channels, dtype=dtype)
    with pytest.raises(InvalidValueError, match=told):
        cache.update(new, new, 0)
    assert torch.equal(_read(model, cache, 1, 1), _read(model, undisturbed, 1, 1))


@pytest.mark.parametrize("count", [-1.5, -2.0, True, "5", None, torch.tensor(-1)])
def test_crop_by_anything_but_an_int_changes_nothing(count):
    model = tiny_model("llama")
    cache, undisturbed = (small_policy("snapkv").cache(model) for _ in range(2))
    _read(model, cache)
    _read(model, undisturbed)
    with pytest.raises(InvalidValueError, match="an int such as -5"):
        cache.crop(count)
    assert cache.get_seq_length() == 60
    assert torch.equal(_read(model, cache, 1, 1), _read(model, undisturbed, 1, 1))
