"""A model's attention while it is observed, and after."""

import pytest
import torch
from model_types import needs_type
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import kvpolicy
from kvpolicy.errors import CacheStateError, UnsupportedModelError
from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.exactness.usages import tokens
from kvpolicy.huggingface.attention import attach
from kvpolicy.testing.models import tiny_model

POLICY = kvpolicy.recipe("snapkv", scorer={"name": "snapkv", "window": 8}, budget=24)


def logits(model, cache, ids):
    """The logits of a forward."""
    return model(input_ids=ids, past_key_values=cache).logits


@pytest.fixture(autouse=True)
def _no_other_caches():
    """Close what other tests left open: all models share one attention function."""
    for each in [*attach._open]:
        each.close()


def is_observed():
    """Whether anything is wrapped around sdpa attention."""
    return ALL_ATTENTION_FUNCTIONS["sdpa"] is not sdpa_attention_forward


def test_other_caches_of_the_model_stay_bit_for_bit_what_they_were():
    model, ids = tiny_model("qwen3"), tokens(0)
    before = logits(model, DynamicCache(config=model.config), ids)
    cache = POLICY.cache(model)
    logits(model, cache, ids)

    assert torch.equal(logits(model, DynamicCache(config=model.config), ids), before)
    assert torch.equal(logits(model, None, ids), before)


def test_restore_brings_the_model_back_and_refuses_its_caches():
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    logits(model, cache, tokens(0))
    assert is_observed()

    kvpolicy.restore(model)
    kvpolicy.restore(model)

    assert not is_observed()
    with pytest.raises(CacheStateError, match="restore"):
        logits(model, cache, tokens(1, 1))


def test_leaving_with_restores_the_model_unless_another_cache_needs_it():
    model = tiny_model("llama")
    with POLICY.cache(model) as first:
        with POLICY.cache(model) as second:
            logits(model, second, tokens(0))
        logits(model, first, tokens(0))
    assert not is_observed()
    with first:
        logits(model, first, tokens(1, 1))
    assert not is_observed()


def test_withs_may_overlap_in_any_order():
    model = tiny_model("llama")
    first, second = POLICY.cache(model), POLICY.cache(model)
    with first:
        logits(model, first, tokens(0))
    with second, second:
        logits(model, second, tokens(0))

    assert not is_observed()


def test_keys_that_change_on_their_way_to_attention_are_noticed_in_the_first_forward():
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    update = cache.update
    cache.update = lambda *args, **kwargs: tuple(kept * 1 for kept in update(*args, **kwargs))

    with pytest.raises(UnsupportedModelError, match="layer 0 changed its keys"):
        logits(model, cache, tokens(0))


def test_attention_that_is_not_causal_is_refused():
    model = tiny_model("llama")
    model.model.layers[0].self_attn.is_causal = False

    with pytest.raises(UnsupportedModelError, match="not causal"):
        logits(model, POLICY.cache(model), tokens(0))


def test_a_changed_output_projection_is_noticed():
    model = tiny_model("llama")
    policy = kvpolicy.recipe("restkv", scorer={"name": "restkv", "window": 8}, budget=24)

    def positions():
        cache = policy.cache(model)
        logits(model, cache, tokens(0))
        return cache.positions[0]

    before = positions()
    model.model.layers[0].self_attn.o_proj.weight.data[:, :8] *= 100
    changed = positions()
    model.model.layers[0].self_attn.o_proj.weight.data[:, :8] /= 100

    assert not torch.equal(before, changed)


def test_restore_closes_caches_that_are_still_alive():
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    kvpolicy.restore(model)
    with POLICY.cache(model) as other:
        logits(model, other, tokens(0))

    assert not is_observed()
    with cache:
        logits(model, cache, tokens(0))


class SeenAttention:
    """Notes the attention that it is shown, of every query, and the values behind it."""

    window = None

    def __init__(self):
        self.outputs = []

    def score(self, observation, reduce):
        groups = observation.queries.shape[1] // observation.values.shape[1]
        values = observation.values.repeat_interleave(groups, 1)
        output = observation.attention @ values
        self.outputs.append(output.transpose(1, 2).flatten(2))
        return observation.folded_attention(reduce)


# A cap, a scaling, norms of queries, partial rotary embedding, layers without one, sinks.
@pytest.mark.parametrize(
    "model_type",
    [
        "llama", "gemma2", "granite", "qwen3", "stablelm", "smollm3",
        "gpt_oss", "flint", "granite_swa", "granitemoe_swa", "mimo_v2_flash",
    ],
)  # fmt: skip
def test_the_attention_shown_is_the_models_own_eager_attention(model_type):
    needs_type(model_type)
    model = tiny_architecture(model_type, attn_implementation="eager")
    for name, parameter in model.named_parameters():
        if name.endswith(".sinks"):
            # Some types begin with zeros, or little more.
            parameter.data.copy_(10 + 3 * torch.arange(len(parameter)))
    scorer, given = SeenAttention(), []
    cache = kvpolicy.compose(scorer=scorer, budget=24).cache(model)
    hooks = [
        module.register_forward_pre_hook(lambda _, args: given.append(args[0]))
        for name, module in model.named_modules()
        if name.endswith(("self_attn.o_proj", "self_attn.dense"))
    ]
    with torch.no_grad():
        logits(model, cache, tokens(0))
    for hook in hooks:
        hook.remove()
    policy_layers = [
        attended
        for attended, layer in zip(given, cache.layers, strict=True)
        if layer in cache.policy_layers
    ]

    assert scorer.outputs
    for own, shown in zip(policy_layers, scorer.outputs, strict=True):
        torch.testing.assert_close(shown, own.view_as(shown), rtol=1e-4, atol=1e-4)
