"""A model gets another attention for a while, and is left as it was found."""

import gc
import weakref

import pytest
import torch

from kvpolicy.exactness.attention import replaced_attention
from kvpolicy.exactness.usages import tokens
from kvpolicy.testing.models import tiny_model


def zeros(module, query, key, value, mask, **kwargs):
    return torch.zeros_like(query.transpose(1, 2)), None


def test_the_given_function_attends_inside_the_block_only():
    model = tiny_model("llama")
    before = model(tokens(0)).logits
    with replaced_attention(model, zeros, name="zeros"):
        assert not torch.equal(model(tokens(0)).logits, before)
    assert torch.equal(model(tokens(0)).logits, before)
    assert model.config._attn_implementation == "sdpa"


def test_the_model_is_left_as_it_was_found_when_the_block_raises():
    model = tiny_model("llama")
    with pytest.raises(ZeroDivisionError), replaced_attention(model, zeros, name="zeros"):
        raise ZeroDivisionError
    assert model.config._attn_implementation == "sdpa"


def test_transformers_does_not_keep_the_function():
    def attention(*args, **kwargs):
        return zeros(*args, **kwargs)

    with replaced_attention(tiny_model("llama"), attention, name="zeros"):
        pass
    reference = weakref.ref(attention)
    del attention
    gc.collect()
    assert reference() is None


def test_a_mask_function_gives_the_mask():
    masks = []

    def noted(module, query, key, value, mask, **kwargs):
        masks.append(mask)
        return zeros(module, query, key, value, mask)

    def mask_function(**kwargs):
        return "a mask"

    model = tiny_model("llama")
    with replaced_attention(model, noted, name="noted", mask=mask_function):
        model(tokens(0))
    assert masks == ["a mask"] * model.config.num_hidden_layers
