"""Gradients are those of a full cache, and behind an eviction they flow through what is kept."""

import pytest
import torch
from transformers import DynamicCache, Starcoder2Config, Starcoder2ForCausalLM

from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import tokens
from kvpolicy.prefill import AShape
from kvpolicy.testing.models import tiny_model

RECIPES = ("restkv", "snapkv", "h2o", "tova", "adakv", "pyramidkv", "streamingllm", "lacache")
WEIGHTS = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "embed_tokens.weight")


def _double_model():
    """Return a model that computes in float64 all through; Llama's norms round to float32."""
    torch.manual_seed(0)
    config = Starcoder2Config(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        embedding_dropout=0.0,
        residual_dropout=0.0,
    )
    return Starcoder2ForCausalLM(config).double().eval()


def _loss(model, cache, turns=(40, 6, 1, 1)):
    inputs = [tokens(seed, length) for seed, length in enumerate(turns)]
    outputs = [model(each, past_key_values=cache).logits for each in inputs]
    return sum(output.square().mean() for output in outputs)


def _gradients(model, cache):
    model.zero_grad()
    _loss(model, cache).backward()
    return {name: each.grad for name, each in model.named_parameters() if name.endswith(WEIGHTS)}


@pytest.mark.parametrize("recipe", RECIPES)
@torch.enable_grad()
def test_without_eviction_they_are_those_of_a_full_cache(recipe):
    model = tiny_model("llama")
    expected = _gradients(model, DynamicCache(config=model.config))
    found = _gradients(model, small_policy(recipe, budget=1000).cache(model))
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.sampled(2, "recipe")
@pytest.mark.parametrize("recipe", RECIPES)
@torch.enable_grad()
def test_behind_an_eviction_they_are_the_slope_of_the_loss(recipe):
    model, policy = _double_model(), small_policy(recipe)
    found = _gradients(model, policy.cache(model))
    # A step small enough that the same positions are kept.
    step, parameters = 1e-6, dict(model.named_parameters())
    for name, gradient in found.items():
        losses = []
        direction = torch.randn(
            gradient.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        for sign in (1, -2):
            with torch.no_grad():
                parameters[name].add_(direction, alpha=sign * step)
                losses.append(_loss(model, policy.cache(model)))
        with torch.no_grad():
            parameters[name].add_(direction, alpha=step)
        slope = (losses[0] - losses[1]) / (2 * step)
        # The difference of two losses of about 1 is known to about 1e-16 / 1e-6.
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-7)


@torch.enable_grad()
def test_a_prompt_read_without_gradients_does_not_cut_those_of_later_tokens():
    model = tiny_model("llama")
    cache = small_policy("adakv").cache(model)
    with torch.no_grad():
        model(tokens(0, 40), past_key_values=cache)
    model(tokens(1, 4), past_key_values=cache).logits.square().mean().backward()
    for name, each in model.named_parameters():
        assert each.grad is not None, name
        assert each.grad.isfinite().all(), name


@torch.enable_grad()
def test_padding_has_finite_gradients():
    model, mask = tiny_model("llama"), torch.ones(2, 40, dtype=torch.long)
    mask[0, :25] = 0
    cache = small_policy("adakv").cache(model)
    model(tokens(0, 40, 2), attention_mask=mask, past_key_values=cache)
    mask = torch.cat([mask, torch.ones(2, 3, dtype=torch.long)], 1)
    output = model(tokens(1, 3, 2), attention_mask=mask, past_key_values=cache).logits
    output.square().mean().backward()
    assert all(bool(each.grad.isfinite().all()) for each in model.parameters())


@pytest.mark.parametrize("storage", ["quantized", "offloaded"])
@torch.enable_grad()
def test_a_storage_refuses_them_and_the_conversation_goes_on(storage):
    model = tiny_model("llama")
    cache = small_policy("snapkv").cache(model, storage=storage)
    with pytest.raises(InvalidValueError, match=f"{storage}.* has no gradients"):
        model(tokens(0, 40), past_key_values=cache)
    with torch.no_grad():
        model(tokens(0, 40), past_key_values=cache)
    assert cache.get_seq_length() == 40


@torch.enable_grad()
def test_sparse_prefill_refuses_them():
    model = tiny_model("llama", attn_implementation="sdpa")
    pattern = AShape(sinks=3, local=8, block=16)
    cache = small_policy("snapkv").cache(model, prefill=pattern)
    with pytest.raises(UnsupportedModelError, match="sparse prefill has no gradients"):
        model(tokens(0, 80), past_key_values=cache)


@pytest.mark.parametrize("recipe", RECIPES)
@torch.enable_grad()
def test_a_soft_prompt_of_a_frozen_model_gets_the_slope_of_the_loss(recipe):
    """In the first layer only what is kept of the prompt needs gradients, and no later token."""
    model, policy = _double_model().requires_grad_(False), small_policy(recipe)
    prompt = model.model.embed_tokens(tokens(0, 40)).detach()
    direction = torch.randn(
        prompt.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )

    def loss(embedded):
        cache = policy.cache(model)
        model(inputs_embeds=embedded, past_key_values=cache)
        outputs = [model(tokens(seed, 30), past_key_values=cache).logits for seed in (1, 2)]
        return outputs[-1].square().mean()

    given = prompt.clone().requires_grad_()
    loss(given).backward()
    step = 1e-6
    slope = (loss(prompt + step * direction) - loss(prompt - step * direction)) / (2 * step)
    # The difference of two losses of about 1 is known to about 1e-16 / 1e-6.
    torch.testing.assert_close((given.grad * direction).sum(), slope, rtol=1e-4, atol=1e-9)
