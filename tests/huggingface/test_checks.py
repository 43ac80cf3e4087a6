"""What cannot be forgotten or selected is refused before anything changes."""

import pytest
import torch

import kvpolicy
from kvpolicy.errors import CacheStateError, InvalidValueError
from kvpolicy.exactness.usages import tokens
from kvpolicy.testing.models import tiny_model

POLICY = kvpolicy.recipe("snapkv", scorer={"name": "snapkv", "window": 8}, budget=24)
ROWS = torch.tensor


def logits(model, cache, ids):
    """The logits of a forward."""
    return model(input_ids=ids, past_key_values=cache).logits


def test_a_crop_that_one_layer_cannot_follow_leaves_all_as_they_are():
    hybrid = tiny_model("gemma3_text", layer_types=["full_attention", "sliding_attention"] * 2)
    cache = POLICY.cache(hybrid)
    logits(hybrid, cache, tokens(0))

    with pytest.raises(CacheStateError, match="sliding window of 16"):
        cache.crop(-2)

    assert [layer.seen for layer in cache.report().layers] == [60] * 4
    model = tiny_model("llama")
    cache, mask = POLICY.cache(model), torch.ones(2, 20, dtype=torch.long)
    mask[1, :17] = 0
    model(input_ids=tokens(0, 20, 2), attention_mask=mask, past_key_values=cache)
    with pytest.raises(CacheStateError, match="a row of this batch has only 3"):
        cache.crop(-5)
    assert cache.get_seq_length() == 20


@pytest.mark.parametrize(
    ("change", "given"),
    [
        ("batch_repeat_interleave", 0),
        ("batch_repeat_interleave", -1),
        ("batch_repeat_interleave", 1.5),
        ("batch_repeat_interleave", True),
        ("batch_select_indices", [0]),
        ("batch_select_indices", ROWS([2])),
        ("batch_select_indices", ROWS([-3])),
        ("batch_select_indices", ROWS([True])),
        ("batch_select_indices", ROWS([[0]])),
        ("reorder_cache", None),
        ("reorder_cache", ROWS(0)),
        ("reorder_cache", ROWS([0.0])),
        ("reorder_cache", ROWS([-1, 0])),
        ("reorder_cache", ROWS([0, 5])),
        ("reorder_cache", ROWS([True, False])),
    ],
)
def test_rows_that_there_are_not_change_nothing(change, given):
    model = tiny_model()
    cache = POLICY.cache(model)
    model(tokens(0, 60, 2), past_key_values=cache)
    expected = model(tokens(1, 1, 2), past_key_values=cache.clone()).logits
    with pytest.raises(InvalidValueError, match="Nothing was changed"):
        getattr(cache, change)(given)
    assert torch.equal(model(tokens(1, 1, 2), past_key_values=cache).logits, expected)


def test_rows_are_selected_from_the_end_and_by_a_mask_too():
    model = tiny_model()
    cache = POLICY.cache(model)
    model(tokens(0, 60, 2), past_key_values=cache)
    twin, positions = cache.clone(), cache.positions[0][1:]
    cache.batch_select_indices(ROWS([-1]))
    twin.batch_select_indices(ROWS([False, True]))
    assert torch.equal(cache.positions[0], positions)
    assert torch.equal(twin.positions[0], positions)


def test_before_the_first_prompt_there_are_no_rows_to_change():
    model = tiny_model()
    cache = POLICY.cache(model)
    cache.reorder_cache(ROWS([1, 0]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(ROWS([1]))
    model(tokens(0), past_key_values=cache)
    assert cache.batch_size == 1
