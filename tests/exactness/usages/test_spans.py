"""Every usage is exact with protected spans and with a divider; a lost position is found."""

import math

import pytest
import torch

from kvpolicy.cache.eviction.spans import BatchSpans
from kvpolicy.errors import InvalidValueError, KvpolicyError
from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import BITWISE, USAGES, WAYS, small_policy
from kvpolicy.exactness.usages.spans import protected_spans, telling
from kvpolicy.testing.models import tiny_model

TOLD = {"spans": {"system": (1, 5), "tools": (7, 9)}, "protect": ["system"]}
SHORT = {"left padded batch", "second turn of a padded batch", "padded row alone"}
"""Usages with a row of one token, which no such span fits."""


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.sampled(5, "recipe", "usage")
@pytest.mark.parametrize("usage", USAGES)
@pytest.mark.parametrize("recipe", ["restkv", "adakv", "h2o"])
def test_every_usage_is_exact_with_spans(recipe, usage):
    divider = {"divider": "fair"} if recipe != "restkv" else {}
    policy = telling(small_policy(recipe), **TOLD, **divider)
    if usage in SHORT:
        with pytest.raises(InvalidValueError, match="first prompt"):
            USAGES[usage](tiny_model("llama"), policy)
    else:
        assert USAGES[usage](tiny_model("llama"), policy) <= (0 if usage in BITWISE else LIMIT)


@pytest.mark.sampled(2, "model_type", "way")
@pytest.mark.parametrize("way", ["protected spans", "a fair share for each span"])
@pytest.mark.parametrize("model_type", ["deepseek_v3", "gemma4_text", "gemma3n_text", "gpt_oss"])
def test_latents_and_shared_layers_keep_what_is_protected(model_type, way):
    model = tiny_architecture(model_type, attn_implementation="eager")
    assert WAYS[way](model, small_policy("snapkv")) <= LIMIT


def test_a_protected_position_that_is_evicted_is_found(monkeypatch):
    monkeypatch.setattr(BatchSpans, "protected", lambda spans, row, first, end: 0)
    protects = BatchSpans.protects
    monkeypatch.setattr(
        BatchSpans,
        "protects",
        lambda spans, positions, row: protects(spans, positions, row) & (positions < 33),
    )
    assert protected_spans(tiny_model("llama"), small_policy("snapkv")) == math.inf


def test_a_budget_that_cannot_hold_the_spans_is_refused_by_name():
    with pytest.raises(KvpolicyError, match=r"protect keeps 8 positions"):
        protected_spans(tiny_model("llama"), small_policy("snapkv", budget=12))
