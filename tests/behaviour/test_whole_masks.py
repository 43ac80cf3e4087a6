"""A mask is followed exactly or refused, whatever its middle rows hide."""

import pytest
import torch
from transformers import DynamicCache

from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import tokens
from kvpolicy.huggingface.attention import attach, mask_memo
from kvpolicy.huggingface.static import cache as static_cache
from kvpolicy.testing.models import tiny_model

NEW, SEEN = 5, 60


def _causal(new=NEW, seen=SEEN):
    return torch.ones(1, 1, new, seen + new, dtype=torch.bool).tril(seen)


def _hidden(rows, columns):
    mask = _causal()
    mask[:, :, rows, columns] = False
    return mask


# Each hides tokens from rows in the middle; the last row and the diagonal are causal.
MASKS = {
    "block": _hidden(slice(0, NEW - 1), slice(0, 30)),
    "document": _hidden(slice(1, 3), slice(0, SEEN)),
    "tree": _hidden(slice(2, 3), slice(SEEN + 1, SEEN + 2)),
    "one cell": _hidden(slice(0, 1), slice(7, 8)),
}
ATTENTION = pytest.mark.parametrize("attention", ["eager", "sdpa"])


def _given(mask, attention):
    if attention == "sdpa":
        return mask
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


def _turn(model, cache, mask):
    model(tokens(0), past_key_values=cache)
    return model(tokens(1, NEW), attention_mask=mask, past_key_values=cache).logits


@ATTENTION
@pytest.mark.parametrize("name", MASKS)
def test_before_any_eviction_the_mask_is_the_models_own(attention, name):
    model = tiny_model("llama", attn_implementation=attention)
    mask = _given(MASKS[name], attention)
    expected = _turn(model, DynamicCache(config=model.config), mask)
    found = _turn(model, small_policy("snapkv", budget=1000).cache(model), mask)
    assert (found - expected).abs().max() <= LIMIT


@pytest.mark.sampled(2, "attention", "recipe", "name")
@ATTENTION
@pytest.mark.parametrize("recipe", ["snapkv", "adakv", "h2o"])
@pytest.mark.parametrize("name", MASKS)
def test_behind_an_eviction_it_is_refused_and_the_conversation_goes_on(attention, recipe, name):
    model = tiny_model("llama", attn_implementation=attention)
    cache, undisturbed = (small_policy(recipe).cache(model) for _ in range(2))
    with pytest.raises(InvalidValueError, match="does more than to hide padding"):
        _turn(model, cache, _given(MASKS[name], attention))
    assert cache.get_seq_length() == SEEN
    expected = _turn(model, undisturbed, None)
    found = model(tokens(1, NEW), past_key_values=cache).logits
    assert torch.equal(found, expected)


@ATTENTION
def test_a_causal_mask_of_its_own_making_is_served(attention):
    model, policy = tiny_model("llama", attn_implementation=attention), small_policy("snapkv")
    expected = _turn(model, policy.cache(model), None)
    found = _turn(model, policy.cache(model), _given(_causal(), attention))
    assert (found - expected).abs().max() <= LIMIT


@ATTENTION
def test_a_prompt_with_two_documents_is_refused(attention):
    model, mask = tiny_model("llama", attn_implementation=attention), _causal(SEEN, 0)
    mask[:, :, 30:, :30] = False
    mask[:, :, -1] = True
    with pytest.raises(InvalidValueError, match="does more than to hide padding"):
        model(
            tokens(0),
            attention_mask=_given(mask, attention),
            past_key_values=small_policy("snapkv").cache(model),
        )


@ATTENTION
@pytest.mark.parametrize("hidden", [slice(0, 30), slice(40, 41)])
def test_a_2d_mask_that_hides_older_tokens_of_a_decoded_one_is_refused(attention, hidden):
    model, step = tiny_model("llama", attn_implementation=attention), tokens(1, 1)
    cache, undisturbed = (small_policy("knorm").cache(model) for _ in range(2))
    for each in (cache, undisturbed):
        model(tokens(0), past_key_values=each)
    mask = torch.ones(1, SEEN + 1, dtype=torch.long)
    mask[:, hidden] = 0
    with pytest.raises(InvalidValueError, match="says of earlier tokens"):
        model(step, attention_mask=mask, past_key_values=cache)
    expected = model(step, past_key_values=undisturbed).logits
    assert torch.equal(model(step, past_key_values=cache).logits, expected)


@ATTENTION
@pytest.mark.parametrize(
    "mask",
    [
        _causal().long(),
        _causal().expand(2, 1, -1, -1),
        _causal()[..., -7:],
        _causal()[:, :, 1:],
        _causal(NEW, SEEN)[:, :, :1],
    ],
    ids=["int", "another batch", "too few columns", "too few rows", "one row"],
)
def test_a_mask_of_another_shape_is_refused_and_the_conversation_goes_on(attention, mask):
    model = tiny_model("llama", attn_implementation=attention)
    cache, undisturbed = (small_policy("snapkv").cache(model) for _ in range(2))
    mask = _given(mask, attention) if mask.dtype == torch.bool else mask
    with pytest.raises(InvalidValueError, match="a ready attention_mask is bool or float"):
        _turn(model, cache, mask)
    expected = _turn(model, undisturbed, None)
    assert torch.equal(model(tokens(1, NEW), past_key_values=cache).logits, expected)


def test_generate_looks_at_the_mask_of_one_new_token_too():
    model, mask = tiny_model("llama"), torch.ones(1, SEEN + 1, dtype=torch.long)
    cache = small_policy("knorm").cache(model)
    model(tokens(0), past_key_values=cache)
    mask[:, :30] = 0
    whole = torch.cat([tokens(0), tokens(1, 1)], 1)
    with pytest.raises(InvalidValueError, match="says of earlier tokens"):
        model.generate(whole, attention_mask=mask, past_key_values=cache, max_new_tokens=2)
    assert cache.get_seq_length() == SEEN


def _with_a_bias(new, seen):
    """A mask that weighs keys by their distance, as ALiBi does."""
    distance = torch.arange(seen, seen + new)[:, None] - torch.arange(seen + new)
    hidden = ~_causal(new, seen)
    return (-0.1 * distance)[None, None].masked_fill(hidden, torch.finfo(torch.float32).min)


@ATTENTION
def test_a_bias_is_followed_before_any_eviction_and_refused_behind_one(attention):
    model, bias = tiny_model("llama", attn_implementation=attention), _with_a_bias(NEW, SEEN)
    expected = _turn(model, DynamicCache(config=model.config), bias)
    found = _turn(model, small_policy("snapkv", budget=1000).cache(model), bias)
    assert (found - expected).abs().max() <= LIMIT
    with pytest.raises(InvalidValueError, match="does more than to hide padding"):
        _turn(model, small_policy("snapkv").cache(model), bias)
    with pytest.raises(InvalidValueError, match="does more than to hide padding"):
        model(
            tokens(0),
            attention_mask=_with_a_bias(SEEN, 0),
            past_key_values=small_policy("snapkv").cache(model),
        )


@ATTENTION
def test_a_mask_that_was_written_to_between_two_forwards_is_read_again(attention):
    model = tiny_model("llama", attn_implementation=attention)
    cache, step = small_policy("knorm").cache(model), tokens(1, 1)
    model(tokens(0), past_key_values=cache)
    mask = _given(_causal(1), attention)
    model(step, attention_mask=mask, past_key_values=cache)
    cache.crop(-1)
    hidden = _causal(1)
    hidden[..., :40] = False
    mask.copy_(_given(hidden, attention))
    with pytest.raises(InvalidValueError, match="says of earlier tokens"):
        model(step, attention_mask=mask, past_key_values=cache)


def _with_an_image(attention):
    mask = _causal(SEEN, 0)
    mask[:, :, 10:26, 10:26] = True
    return _given(mask, attention)


@ATTENTION
def test_a_block_that_sees_itself_whole_is_read_as_the_model_reads_it(attention):
    model, mask = tiny_model("llama", attn_implementation=attention), _with_an_image(attention)
    cache, full = small_policy("snapkv").cache(model), DynamicCache(config=model.config)
    found, expected = (
        model(tokens(0), attention_mask=mask, past_key_values=each).logits for each in (cache, full)
    )
    assert (found - expected).abs().max() <= LIMIT
    assert cache.policy_layers[0].held == 24


@ATTENTION
def test_it_is_refused_where_a_scorer_computes_what_its_queries_see(attention):
    model = tiny_model("llama", attn_implementation=attention)
    cache = small_policy("h2o").cache(model)
    with pytest.raises(InvalidValueError, match="does more than to hide padding"):
        model(tokens(0), attention_mask=_with_an_image(attention), past_key_values=cache)


@ATTENTION
def test_layers_that_share_a_mask_are_judged_each_by_what_it_has_evicted(attention):
    """The first layer holds all that it has seen; the second one does not."""
    model = tiny_model("llama", attn_implementation=attention)
    policy = small_policy("pyramidkv", budget=56)
    cache, mask = policy.cache(model), _given(MASKS["block"], attention)
    model(tokens(0), past_key_values=cache)
    held = [layer.held for layer in cache.policy_layers]
    assert held[0] == SEEN > held[1]
    with pytest.raises(InvalidValueError, match="does more than to hide padding"):
        model(tokens(1, NEW), attention_mask=mask, past_key_values=cache)


@pytest.mark.parametrize("storage", ["quantized", "offloaded"])
def test_with_a_storage_the_conversation_goes_on_too(storage):
    model = tiny_model("llama", attn_implementation="sdpa")
    cache, undisturbed = (small_policy("snapkv").cache(model, storage=storage) for _ in range(2))
    with pytest.raises(InvalidValueError, match="does more than to hide padding"):
        _turn(model, cache, MASKS["block"])
    expected = _turn(model, undisturbed, None)
    found = model(tokens(1, NEW), past_key_values=cache).logits
    assert torch.equal(found, expected)


def _close_all():
    """Close the caches that other tests left open, so that `generate` is transformers' own."""
    for cache in list(attach._open):
        cache.close()


@pytest.mark.parametrize("static", [False, True])
def test_generate_looks_at_its_first_2d_mask_only(static, monkeypatch):
    """Also where the cache is made among its arguments, so that ours is not the one that runs."""
    looked, model = [], tiny_model("llama")
    for module in (mask_memo, static_cache):
        own = module.check_given_mask
        monkeypatch.setattr(
            module, "check_given_mask", lambda *args, own=own: looked.append(own(*args))
        )
    policy = small_policy("knorm")
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    given = {"static": True, "capacity": 8} if static else {}
    inputs = {"input_ids": tokens(0), "attention_mask": torch.ones_like(tokens(0))}
    _close_all()
    inline = model.generate(**inputs, past_key_values=policy.cache(model, **given), **options)
    among_arguments = len(looked)
    cache = policy.cache(model, **given)
    assert torch.equal(model.generate(**inputs, past_key_values=cache, **options), inline)
    assert among_arguments == len(looked) - among_arguments == 1  # the prompt's
    for _ in range(2):
        model(tokens(1, 1), attention_mask=torch.ones(1, cache.seen + 1), past_key_values=cache)
    assert len(looked) == 2 * among_arguments + 2


def test_drafts_with_a_cache_that_is_made_among_the_arguments_are_told_what_to_do():
    model, options = tiny_model("llama"), {"max_new_tokens": 4, "prompt_lookup_num_tokens": 2}
    _close_all()
    with pytest.raises(UnsupportedModelError, match="Make the cache before the call"):
        model.generate(tokens(0), past_key_values=small_policy("knorm").cache(model), **options)
