"""The bytes that are computed from a config are those that a cache takes."""

from __future__ import annotations

import inspect

import pytest
import torch
from model_types import needs_type
from transformers.cache_utils import LinearAttentionLayer

import kvpolicy
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.huggingface.size import cache_size, model_shape
from kvpolicy.named import resolved
from kvpolicy.testing.models import tiny_model

TOKENS = 300


@pytest.fixture(scope="module")
def model():
    return tiny_model("qwen3")


@pytest.fixture(scope="module")
def shape(model):
    return model_shape(model.config, torch.float32)


@pytest.fixture(scope="module")
def prompt():
    return torch.randint(0, 90, (1, TOKENS), generator=torch.Generator().manual_seed(0))


def test_the_weights_are_those_of_the_model(model, shape):
    assert shape.weight_nbytes == sum(each.nbytes for each in model.parameters())


@pytest.mark.parametrize("tokens", [30, TOKENS])
@pytest.mark.parametrize(
    ("recipe", "budget", "storage"),
    [
        ("snapkv", 64, None),
        ("restkv", 0.25, None),
        ("h2o", 64, None),
        ("streamingllm", 64, None),
        ("pyramidkv", 64, None),
        ("snapkv", 64, "offloaded"),
        ("snapkv", 64, {"name": "quantized", "bits": 4}),
        ("snapkv", 0.5, {"name": "quantized", "bits": 8, "residual": 16}),
    ],
)
def test_a_cache_takes_as_many_bytes(model, shape, prompt, recipe, budget, storage, tokens):
    policy = kvpolicy.recipe(recipe, budget=budget)
    with policy.cache(model, storage=storage) as cache:
        model(prompt[:, :tokens], past_key_values=cache)
        stored = None if storage is None else resolved("storage", storage).part
        size = cache_size(shape, policy, tokens, storage=stored)
        assert size.nbytes == cache.nbytes
        assert size.full == cache.report().full_nbytes


@pytest.mark.filterwarnings("ignore")
# An older transformers does not, and kvpolicy then refuses such layers. `make oldest` runs this.
@pytest.mark.skipif(
    "number_of_states" not in inspect.signature(LinearAttentionLayer.__init__).parameters,
    reason="refused here: this transformers does not say how many states a layer has",
)
@pytest.mark.parametrize("kind", ["falcon_h1", "zamba2", "qwen3_next", "inkling_text"])
def test_linear_states_are_counted(kind, prompt):
    needs_type(kind)
    model, policy = tiny_architecture(kind).bfloat16(), kvpolicy.recipe("snapkv", budget=64)
    shape = model_shape(model.config, torch.bfloat16)
    assert shape.linear_nbytes > 0
    with policy.cache(model) as cache, torch.no_grad():
        model(prompt, past_key_values=cache)
        size = cache_size(shape, policy, TOKENS)
        assert size.nbytes == cache.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_experts_are_counted(dtype):
    model = tiny_architecture("qwen3_moe").to(dtype)
    shape = model_shape(model.config, dtype)
    assert shape.weight_nbytes == sum(each.nbytes for each in model.parameters())
    assert {layer.dtype for layer in shape.layers} == {dtype}


def test_an_allocator_that_stays_below_the_budget_takes_less(model, shape, prompt):
    policy = kvpolicy.recipe("adakv", budget=64)
    with policy.cache(model) as cache:
        model(prompt, past_key_values=cache)
        bound = cache_size(shape, policy, TOKENS).nbytes
        assert 0.98 * bound < cache.nbytes <= bound


def test_the_full_cache_has_the_bytes_of_its_rows(model, shape, prompt):
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    model(prompt, past_key_values=cache)
    rows = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    size = cache_size(shape, None, TOKENS, batch=2)
    assert (size.nbytes, size.full, size.reading) == (2 * rows, 2 * rows, 2 * rows)


def test_one_layer_at_a_time_is_whole_while_the_prompt_is_read(shape):
    size = cache_size(shape, kvpolicy.recipe("snapkv", budget=64), TOKENS)
    assert size.reading == size.nbytes // 2 + size.full // 2
    together = cache_size(shape, kvpolicy.recipe("layerdefensivekv", budget=64), TOKENS)
    assert together.reading == together.full
    in_turn = cache_size(shape, kvpolicy.recipe("snapkv", allocator="carried", budget=64), TOKENS)
    assert in_turn.reading == size.reading


def test_a_prompt_without_tokens_is_refused(shape):
    with pytest.raises(InvalidValueError, match="at least 1 token, not 0"):
        cache_size(shape, None, 0)


def test_a_model_that_cannot_be_served_is_refused():
    from transformers import MambaConfig

    config = MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=16)
    with pytest.raises(UnsupportedModelError, match=r"no layer of MambaForCausalLM|takes no cache"):
        model_shape(config, torch.float32)


@pytest.mark.parametrize(
    ("recipe", "least"),
    [
        ("snapkv", 1),
        ("restkv", 1),
        ("layerdefensivekv", 1),
        ("h2o", 0.9),  # the newest layer has no running state yet
        ("pyramidkv", 0.9),  # a bound for all allocators
        ("adakv", 0.8),
        (("snapkv", {"allocator": "carried"}), 0.8),
    ],
)
def test_no_more_is_held_while_a_prompt_is_read(recipe, least, model, shape, prompt, monkeypatch):
    name, options = recipe if isinstance(recipe, tuple) else (recipe, {})
    policy, measured = kvpolicy.recipe(name, budget=64, **options), []
    with policy.cache(model) as cache:
        own = cache.update

        def update(*args, **options):
            given = own(*args, **options)
            measured.append(cache.nbytes)
            return given

        monkeypatch.setattr(cache, "update", update)
        model(prompt, past_key_values=cache)
    reading = cache_size(shape, policy, TOKENS).reading
    assert least * reading <= max(measured) <= reading
