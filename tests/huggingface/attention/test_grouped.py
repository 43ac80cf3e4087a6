"""Query heads of a group as rows change the rounding, and nothing before an eviction."""

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache

import kvpolicy
from kvpolicy.exactness.usages import small_policy, tokens
from kvpolicy.huggingface.attention import call as attention
from kvpolicy.huggingface.attention.grouped import attend_grouped, grouped_attention
from kvpolicy.testing.models import tiny_model


@pytest.fixture
def grouped_calls(monkeypatch):
    """The number of keys of every grouped call."""
    calls = []

    def noted(own, query, key, *rest):
        output = attend_grouped(own, query, key, *rest)
        if output is not None:
            calls.append(key.shape[2])
        return output

    monkeypatch.setattr(attention, "attend_grouped", noted)
    return calls


def read(model, cache, *lengths, **options):
    for seed, length in enumerate(lengths):
        output = model(input_ids=tokens(seed, length), past_key_values=cache, **options)
    return output.logits


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(8, 2, 8), (6, 2, 80), (4, 1, 128)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_it_is_the_attention_of_each_query_head(heads, kv_heads, dim, dtype, tolerance):
    draw = torch.Generator().manual_seed(heads)
    query = torch.randn(2, heads, 1, dim, generator=draw).to(dtype)
    shape = (2, kv_heads, 40, dim)
    keys, values = torch.randn(2, *shape, generator=draw).to(dtype)[:, :, :, 3:]

    output = grouped_attention(query, keys, values, 0.2)

    expected = F.scaled_dot_product_attention(
        query.double(), keys.double(), values.double(), scale=0.2, enable_gqa=True
    ).transpose(1, 2)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)


def test_values_may_have_another_size_than_keys():
    values = torch.ones(1, 2, 5, 3)
    output = grouped_attention(torch.randn(1, 4, 1, 8), torch.randn(1, 2, 5, 8), values, 1.0)
    torch.testing.assert_close(output, torch.ones(1, 1, 4, 3))


def test_tokens_decoded_behind_an_eviction_are_grouped(grouped_calls):
    model = tiny_model()
    read(model, small_policy("snapkv").cache(model), 60, 1, 1)
    layers = model.config.num_hidden_layers
    assert grouped_calls == [25] * layers + [26] * layers


def test_as_long_as_nothing_was_evicted_the_model_attends_as_it_always_does(grouped_calls):
    model = tiny_model()
    held = read(model, small_policy("snapkv", budget=80).cache(model), 60, 1, 1)
    assert grouped_calls == []
    kvpolicy.restore(model)
    assert torch.equal(held, read(model, DynamicCache(config=model.config), 60, 1, 1))


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"attn_implementation": "eager"}, {}),
        ({"num_key_value_heads": 4}, {}),
        ({}, {"attention_mask": "padded"}),
    ],
    ids=["another implementation", "no groups", "padding"],
)
def test_other_calls_are_left_to_the_model(grouped_calls, config, options):
    model = tiny_model(**config)
    cache = small_policy("snapkv").cache(model)
    if options:
        mask = torch.ones(2, 60, dtype=torch.long)
        mask[0, :50] = 0
        model(input_ids=tokens(0, 60, 2), attention_mask=mask, past_key_values=cache)
        mask = torch.cat([mask, mask.new_ones(2, 1)], 1)
        model(input_ids=tokens(1, 1, 2), attention_mask=mask, past_key_values=cache)
    else:
        read(model, cache, 60, 1)
    assert grouped_calls == []


def test_several_tokens_at_once_are_left_to_the_model(grouped_calls):
    model = tiny_model()
    read(model, small_policy("snapkv").cache(model), 60, 5)
    assert grouped_calls == []
