"""Caches are attached to a model and taken off again, in whatever order they go."""

from __future__ import annotations

import gc

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import kvpolicy
from kvpolicy.huggingface.attention import attach
from kvpolicy.testing import tiny_model


def test_a_cache_that_is_collected_while_another_opens_takes_no_wrap_away(monkeypatch):
    # A name of its own: caches that other tests left open observe the usual ones.
    AttentionInterface.register("test_attach", sdpa_attention_forward)
    model = tiny_model(attn_implementation="test_attach")
    policy = kvpolicy.recipe("streamingllm", budget=16)
    dropped, wrap = [], attach.observed

    def collecting(own):
        dropped.clear()
        gc.collect()
        return wrap(own)

    monkeypatch.setattr(attach, "observed", collecting)
    first = policy.cache(model)
    first.close()
    dropped.append(first)
    del first
    with policy.cache(model) as cache:
        model(torch.arange(1, 33)[None], past_key_values=cache)
        assert cache.nbytes
    assert not dropped
    assert ALL_ATTENTION_FUNCTIONS["test_attach"] is sdpa_attention_forward
