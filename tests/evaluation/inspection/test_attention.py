"""The attention of one token on some positions is that which eager attention reports."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import kvpolicy
from kvpolicy.evaluation.inspection.attention import attention_on, held_of
from kvpolicy.testing import tiny_model


@pytest.fixture
def tiny_sinks():
    """A small GPT-OSS, whose attention has learned sinks."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "gpt_oss",
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        head_dim=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
        num_experts_per_tok=1,
        layer_types=["full_attention"] * 2,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


IDS = torch.tensor([[1, 5, 9, 2, 7, 3, 8, 4]])


def test_it_is_that_of_eager_attention():
    model = tiny_model(attn_implementation="eager")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        expected = model(torch.cat([IDS, torch.tensor([[6]])], 1), output_attentions=True)
        model(IDS, past_key_values=cache)
        logits, found = attention_on(model, cache, 6, {1, 3})
    torch.testing.assert_close(logits, expected.logits[0, -1])
    for layer, weights in zip(found, expected.attentions, strict=True):
        heads = weights[0, :, -1, [1, 3]].sum(-1)
        torch.testing.assert_close(layer, heads.unflatten(0, (len(layer), -1)).mean(1))


def test_what_was_evicted_gets_none():
    model = tiny_model()
    policy = kvpolicy.compose(scorer="streamingllm", budget=3, sinks=1, recent=2)
    with torch.no_grad(), policy.cache(model) as cache:
        model(IDS, past_key_values=cache)
        held = held_of(cache, 8)
        _, found = attention_on(model, cache, 6, {2, 3})
        _, rest = attention_on(model, cache, 6, {0, 6, 7})
    assert all(layer.tolist() == [[0, 6, 7]] * len(layer) for layer in held)
    assert all(layer.eq(0).all() for layer in found)
    assert all(((layer > 0) & (layer < 1)).all() for layer in rest)


def test_uneven_heads_cannot_be_looked_at():
    model = tiny_model()
    policy = kvpolicy.recipe("adakv", budget=4, scorer={"name": "snapkv", "window": 2})
    with torch.no_grad(), policy.cache(model) as cache:
        model(IDS, past_key_values=cache)
        lengths = [(layer >= 0).sum(-1) for layer in held_of(cache, 8)]
        _, found = attention_on(model, cache, 6, {2})
    uneven = [bool((each != each[0]).any()) for each in lengths]
    assert any(uneven)
    assert [layer is None for layer in found] == uneven


def test_the_model_is_left_as_it_was():
    model = tiny_model()
    before = model.config._attn_implementation
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(IDS, past_key_values=cache)
        with pytest.raises(IndexError):
            attention_on(model, cache, 10_000_000, {1})
    assert model.config._attn_implementation == before


def test_a_softmax_with_learned_sinks_cannot_be_looked_at(tiny_sinks):
    cache = DynamicCache(config=tiny_sinks.config)
    with torch.no_grad():
        tiny_sinks(IDS, past_key_values=cache)
        _, found = attention_on(tiny_sinks, cache, 6, {1})
    assert found == [None] * len(found)
