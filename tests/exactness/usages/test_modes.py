"""Modes of a model: what refuses a usage is named."""

import pytest
import torch

import kvpolicy
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.exactness.usages import MODES, small_policy
from kvpolicy.testing.models import tiny_model


@torch.no_grad()
def test_what_we_refuse_of_both_caches_is_not_called_transformers_refusal():
    model = tiny_model("gemma2", attn_implementation="eager")
    with (
        kvpolicy.memory_efficient_attention(model),
        pytest.raises(UnsupportedModelError, match=r"^Gemma2Attention asks for attention weights"),
    ):
        MODES["output attentions"](model, small_policy("restkv"))
