"""Sparse prefill refuses what it cannot follow, and names a pattern that is faulty."""

from __future__ import annotations

import sys
from pathlib import Path

import attrs
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

import kvpolicy.huggingface.attention.masks as masks
from kvpolicy.errors import (
    ComponentFailedError,
    InvalidComponentError,
    InvalidValueError,
    UnknownComponentError,
    UnsupportedModelError,
)
from kvpolicy.exactness.usages import tokens
from kvpolicy.testing.models import tiny_model

sys.path.insert(0, str(Path(__file__).parent))
from sparse_prompts import A_SHAPE, LENGTH, POLICY, Everything, logits

# One process compiles for all of them.
pytestmark = pytest.mark.xdist_group("flex_attention")


def as_given(backend, allowed):
    """A [B, T, T] mask as a backend of transformers has it."""
    if backend == "sdpa":
        return allowed[:, None]
    if backend == "eager":
        floor = torch.finfo(torch.float32).min
        return torch.zeros(allowed.shape).masked_fill(~allowed, floor)[:, None]

    def visible(row, head, query, key):
        return allowed[row, query, key]

    return create_block_mask(visible, len(allowed), None, *allowed.shape[1:], device="cpu")


@pytest.mark.parametrize("backend", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("at_once", [2**24, 1], ids=["at once", "row by row"])
def test_only_a_causal_mask_with_padding_on_the_left_is_followed(backend, at_once, monkeypatch):
    monkeypatch.setattr(masks, "_ROWS_AT_ONCE", at_once)
    lengths, token = [20, 17, 1], torch.arange(20)
    real = token >= 20 - torch.tensor(lengths)[:, None]
    allowed = torch.ones(20, 20, dtype=torch.bool).tril() & real[:, None]
    told = ("sparse prefill", "Use prefill=None.")
    masks.check_causal(as_given(backend, allowed), lengths, *told)
    masks.check_causal(as_given(backend, allowed | ~real[..., None]), lengths, *told)

    for row, query, key in ((0, 19, 4), (0, 4, 19), (1, 12, 3), (1, 12, 2), (2, 19, 19)):
        other = allowed.clone()
        other[row, query, key] ^= True
        with pytest.raises(InvalidValueError, match="prefill=None"):
            masks.check_causal(as_given(backend, other), lengths, *told)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_mask_that_does_more_than_hide_padding_is_refused(implementation):
    model = tiny_model("llama", attn_implementation=implementation)
    packed = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    packed[..., 50:60, :20] = False
    mask = packed
    if implementation == "eager":
        mask = torch.zeros(packed.shape).masked_fill(~packed, torch.finfo(torch.float32).min)
    # Nothing is evicted: the eviction would refuse the mask first.
    cache = attrs.evolve(POLICY, budget=1000).cache(model, prefill=A_SHAPE)

    refusal = r"sparse prefill cannot follow it\. Use prefill=None"
    with pytest.raises(InvalidValueError, match=refusal):
        model(input_ids=tokens(0, LENGTH), attention_mask=mask, past_key_values=cache)


def test_dropout_is_refused():
    model = tiny_model("llama", attention_dropout=0.5)
    model.train()
    with pytest.raises(UnsupportedModelError, match="sparse prefill do not support"):
        logits(model, POLICY.cache(model, prefill=A_SHAPE), tokens(0, LENGTH))


@pytest.mark.parametrize(
    ("choose", "error", "sentence"),
    [
        (lambda *given, **more: torch.ones(1, 4, 6, 6, dtype=torch.bool), InvalidComponentError,
         r"chose torch.bool of \(1, 4, 6, 6\), not torch.bool of \(1, 4, 7, 7\)"),
        (lambda *given, **more: torch.ones(1, 4, 7, 7), InvalidComponentError, "chose torch.float"),
        (lambda *given, **more: None, InvalidComponentError, "chose None"),
        (lambda *given, **more: 1 / 0, ComponentFailedError, "raised ZeroDivisionError"),
    ],
)  # fmt: skip
def test_a_faulty_pattern_is_named(choose, error, sentence):
    @attrs.frozen
    class Faulty(Everything):
        def choose(self, *given, **more):
            return choose(*given, **more)

    model = tiny_model("llama")
    with pytest.raises(error, match=rf"prefill pattern .*Faulty\(.* {sentence}"):
        logits(model, POLICY.cache(model, prefill=Faulty()), tokens(0, LENGTH))


def test_a_prefill_that_does_not_exist_changes_nothing_of_the_model():
    model = tiny_model("llama")
    with pytest.raises(UnknownComponentError, match="Did you mean 'ashape'"):
        POLICY.cache(model, prefill="a_shape")
    assert model.config._attn_implementation == "sdpa"
