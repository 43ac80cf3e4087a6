"""Modes of a model and of `generate` are served exactly, or refused by name."""

import pytest
import torch

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import MODES, modes, small_policy
from kvpolicy.testing.models import tiny_model

DRAFTS = ("assisted decoding", "prompt lookup")
# It takes ten seconds to compile, and tests/behaviour/test_compiled.py compiles the same.
SERVED = [
    pytest.param(mode, marks=[pytest.mark.deep] if mode == "compiled" else [])
    for mode in sorted(set(MODES) - {*DRAFTS})
]


@pytest.mark.sampled(2, "mode", "recipe")
@pytest.mark.parametrize("recipe", ["restkv", "h2o"])
@pytest.mark.parametrize("mode", SERVED)
@torch.no_grad()
def test_what_is_served_is_served_exactly(mode, recipe):
    model = tiny_model("llama", attn_implementation="eager")
    assert MODES[mode](model, small_policy(recipe)) <= LIMIT


@pytest.mark.parametrize("mode", DRAFTS)
@torch.no_grad()
def test_drafts_change_no_token_or_are_refused(mode):
    assert MODES[mode](tiny_model("llama"), small_policy("restkv")) == 0
    with pytest.raises(UnsupportedModelError, match="Assisted decoding and prompt look-up"):
        MODES[mode](tiny_model("llama"), small_policy("h2o"))


@torch.no_grad()
def test_attention_weights_of_uneven_heads_are_refused():
    model = tiny_model("llama", attn_implementation="eager")
    with pytest.raises(UnsupportedModelError, match="output_attentions=True"):
        MODES["output attentions"](model, small_policy("adakv"))


def test_what_transformers_refuses_of_its_own_cache_is_refused():
    def use(cache):
        raise RuntimeError("not with any cache\n and more")

    with pytest.raises(UnsupportedModelError, match="its own cache: RuntimeError: not with any"):
        modes._offered(tiny_model("llama"), use, small_policy("restkv"))


def test_what_fails_with_our_cache_alone_fails():
    def use(cache):
        if hasattr(cache, "policy"):
            raise RuntimeError("only with ours")

    with pytest.raises(RuntimeError, match="only with ours"):
        modes._offered(tiny_model("llama"), use, small_policy("restkv"))
