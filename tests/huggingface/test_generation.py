"""`generate` uses the cache that it is given, or refuses."""

import functools

import pytest
import torch
from transformers import DynamicCache, Phi3Config, Phi3ForCausalLM

from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import replayed, tokens
from kvpolicy.huggingface.cache_argument import handed
from kvpolicy.testing.models import tiny_model

LONG_ROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


def _phi3(**config):
    torch.manual_seed(0)
    small = Phi3Config(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1000,
        original_max_position_embeddings=64,
        pad_token_id=0,
        **config,
    )
    return Phi3ForCausalLM(small).eval()


def _generate(model, cache, prompt, new=12, **options):
    return model.generate(
        prompt, past_key_values=cache, max_new_tokens=new, min_new_tokens=new, do_sample=False,
        pad_token_id=0, **options,
    )  # fmt: skip


@torch.no_grad()
def test_a_model_that_drops_the_cache_of_a_long_prompt_reads_it_through_ours():
    model = _phi3(rope_scaling=LONG_ROPE)
    cache = small_policy("snapkv").cache(model)
    _generate(model, cache, tokens(0, 100))
    assert cache.get_seq_length() == 111


@torch.no_grad()
def test_what_it_then_says_is_exact():
    policy = small_policy("snapkv")
    found = replayed(
        _phi3(rope_scaling=LONG_ROPE),
        policy,
        lambda cache: _generate(cache._model(), cache, tokens(0, 100)),
    )
    assert found <= LIMIT


@torch.no_grad()
def test_a_cache_in_use_that_would_be_dropped_is_refused():
    model = _phi3(rope_scaling=LONG_ROPE)
    cache = small_policy("snapkv").cache(model)
    with pytest.raises(UnsupportedModelError, match="Phi3ForCausalLM drops its cache here"):
        _generate(model, cache, tokens(0, 60))


@torch.no_grad()
def test_use_cache_false_is_refused():
    model = tiny_model("llama")
    cache = small_policy("snapkv").cache(model)
    with pytest.raises(UnsupportedModelError, match="use_cache=False and a cache"):
        _generate(model, cache, tokens(0), use_cache=False)


@torch.no_grad()
def test_generation_with_another_cache_is_refused():
    class Replaced(type(tiny_model("llama"))):
        def generate(self, *args, past_key_values, **kwargs):
            return super().generate(*args, **kwargs)

    model = Replaced(tiny_model("llama").config).eval()
    cache = small_policy("snapkv").cache(model)
    with pytest.raises(UnsupportedModelError, match="read no token into that one"):
        _generate(model, cache, tokens(0))


@torch.no_grad()
def test_a_cache_that_is_dropped_behind_the_prompt_is_refused():
    model, forwards = tiny_model("llama"), []

    class Dropping(type(model)):
        @functools.wraps(type(model).forward)  # whose signature says what its cache is called
        def forward(self, *args, **kwargs):
            forwards.append(kwargs)
            if len(forwards) > 1:
                kwargs |= handed(DynamicCache(config=self.config), to=model)
            return super().forward(*args, **kwargs)

    model.__class__ = Dropping
    cache = small_policy("snapkv").cache(model)
    with pytest.raises(UnsupportedModelError, match="read 60 tokens into that one, and returns 72"):
        _generate(model, cache, tokens(0))


def test_gradient_checkpointing_in_training_is_refused():
    model = tiny_model("llama")
    model.model.gradient_checkpointing = True
    cache = small_policy("snapkv").cache(model)
    with pytest.raises(UnsupportedModelError, match="gradient checkpointing"):
        model.train()(tokens(0), past_key_values=cache)
    with torch.no_grad():
        model.eval()(tokens(0), past_key_values=cache)
    assert cache.get_seq_length() == 60


@torch.no_grad()
def test_a_model_without_a_cache_of_ours_generates_as_before():
    model, prompt = tiny_model("llama"), tokens(0)
    expected = _generate(model, None, prompt)
    with small_policy("snapkv").cache(model):
        assert torch.equal(_generate(model, None, prompt), expected)
        assert torch.equal(_generate(model, None, prompt, use_cache=False), expected)
    assert torch.equal(_generate(model, None, prompt), expected)


@torch.no_grad()
def test_two_caches_are_refused():
    model, policy = tiny_model("llama"), small_policy("snapkv")
    first, second = policy.cache(model), policy.cache(model)
    with pytest.raises(InvalidValueError, match="two caches, as cache and as past_key_values"):
        model.generate(tokens(0), cache=first, past_key_values=second, max_new_tokens=1)
    assert first.seen == second.seen == 0
