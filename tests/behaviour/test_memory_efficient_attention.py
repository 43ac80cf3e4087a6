"""Memory-efficient attention: models answer, and caches evict, as with eager attention."""

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from model_types import needs_type
from transformers import AutoConfig, DynamicCache

import kvpolicy
from kvpolicy.exactness.architectures import model_types, tiny_architecture
from kvpolicy.exactness.limits import LIMIT, limit_of
from kvpolicy.exactness.page import read as lines_of
from kvpolicy.exactness.usages import USAGES, small_policy

SINKS = ("gpt_oss", "mimo_v2_flash", "granite_swa", "granitemoe_swa", "flint")
CAPS = ("gemma2", "vaultgemma")
CAPPED = {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}
"""So small a cap changes the logits of random models too."""
TYPES = [
    *((each, torch.float32) for each in (*SINKS, *CAPS)),
    # Fused kernels, which sinks have, round half precision otherwise than eager attention.
    *((each, torch.bfloat16) for each in CAPS),
]
RECIPES = ("snapkv", "restkv", "adakv", "h2o", "share of the prompt")
CASES = [
    *(("gpt_oss", torch.float32, recipe) for recipe in RECIPES),
    *(("gemma2", torch.float32, recipe) for recipe in (*RECIPES, "streamingllm")),
    *(("gemma2", torch.bfloat16, recipe) for recipe in (*RECIPES, "streamingllm")),
]
TOKENS = (150, 1, 20, 1)
"""A prompt, a decoded token, a turn, and another token."""


@pytest.fixture(autouse=True)
def _quiet():
    with torch.no_grad():
        yield


def eager(model_type):
    changes = CAPPED if model_type in CAPS else {}
    needs_type(model_type)
    model = tiny_architecture(model_type, attn_implementation="eager", **changes)
    for name, parameter in model.named_parameters():
        if name.endswith(".sinks"):
            torch.nn.init.normal_(parameter, std=2.0)
    return model


def read(model, cache, mask):
    found, seen = [], 0
    for length in TOKENS:
        torch.manual_seed(length)
        ids, seen = torch.randint(3, model.config.vocab_size, (2, length)), seen + length
        known = None if mask is None else mask[:, :seen]
        found.append(model(ids, past_key_values=cache, attention_mask=known).logits)
    return found


def mask_of(padding):
    """Return the mask of two rows; None without padding."""
    mask = (torch.arange(sum(TOKENS)) >= torch.tensor([[padding], [0]])).long()
    return mask if padding else None


def assert_close(found, expected, padding, atol):
    found[0], expected[0] = found[0][:, padding:], expected[0][:, padding:]
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("padding", [0, 9])
@pytest.mark.parametrize(("model_type", "dtype"), TYPES)
def test_answers_are_those_of_eager_attention(model_type, dtype, padding):
    model, mask = eager(model_type).to(dtype), mask_of(padding)
    expected = read(model, DynamicCache(config=model.config), mask)
    with kvpolicy.memory_efficient_attention(model):
        found = read(model, DynamicCache(config=model.config), mask)
    assert_close(found, expected, padding, limit_of(model))


@pytest.mark.parametrize("model_type", ["gpt_oss", "mimo_v2_flash", "gemma2"])
def test_a_short_prompt_may_be_mostly_padding(model_type):
    """A padding query sees nothing, also where no sink is."""
    model, ids = eager(model_type), torch.arange(3, 27).view(2, 12)
    mask = (torch.arange(12) >= torch.tensor([[10], [0]])).long()
    expected = model(ids, attention_mask=mask).logits
    with kvpolicy.memory_efficient_attention(model):
        found = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(found[:, 10:], expected[:, 10:], atol=1e-4, rtol=1e-4)


def test_every_type_with_a_soft_cap_is_tested():
    found = set()
    for name in model_types():
        with suppress(Exception):  # transformers cannot build the default of every type
            config = AutoConfig.for_model(name).get_text_config(decoder=True)
            if getattr(config, "attn_logit_softcapping", None) is not None:
                found.add(config.model_type)
    assert "gemma2" in found
    assert found <= set(CAPS)


def test_every_type_that_the_page_serves_with_eager_attention_is_tested():
    lines = lines_of(Path(__file__).parents[2] / "docs/results/exactness.jsonl")
    types = [line for line in lines if line.table == "architectures" and line.refused is None]
    assert {line.subject for line in types if line.note == "eager"} == {*SINKS, *CAPS}


@pytest.mark.parametrize("padding", [0, 60])
@pytest.mark.parametrize(("name", "dtype", "recipe"), CASES)
def test_policies_evict_as_they_do_with_eager_attention(name, dtype, recipe, padding):
    model = eager(name).to(dtype)
    is_share = recipe == "share of the prompt"
    policy = small_policy("snapkv", budget=0.3) if is_share else small_policy(recipe)
    mask = mask_of(padding)
    outside, inside = policy.cache(model), policy.cache(model)
    expected = read(model, outside, mask)
    with kvpolicy.memory_efficient_attention(model):
        found = read(model, inside, mask)
    assert_close(found, expected, padding, limit_of(model))
    for mine, theirs in zip(inside.policy_layers, outside.policy_layers, strict=True):
        assert mine.held < sum(TOKENS)
        assert torch.equal(mine.positions, theirs.positions)


@pytest.mark.sampled(7, "name", "recipe", "usage")
@pytest.mark.parametrize("usage", [usage for usage in USAGES if usage != "after crop"])
@pytest.mark.parametrize("recipe", ["restkv", "adakv", "h2o"])
@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_every_usage_is_exact(name, recipe, usage):
    model = eager(name)
    with kvpolicy.memory_efficient_attention(model):
        assert USAGES[usage](model, small_policy(recipe)) <= LIMIT
