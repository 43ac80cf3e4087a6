"""Tiny models of all types have small sizes, and layers of each kind of the default."""

import pytest
import torch

from kvpolicy.exactness import architectures
from kvpolicy.exactness.architectures import LAYERS, model_types, tiny_architecture, tiny_config


def test_encoder_decoders_are_left_out():
    types = model_types()
    assert {"llama", "gpt2", "mamba"} <= set(types)
    assert not {"t5", "bart"} & set(types)


def test_sizes_are_small_and_kinds_of_layers_are_kept():
    config = tiny_config("gemma3_text")
    assert (config.hidden_size, config.num_hidden_layers) == (32, LAYERS)
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}


def test_windows_alone_are_replaced_by_full_attention():
    config = tiny_config("mistral")
    assert config.sliding_window is None


def test_sizes_by_another_name_are_small_too():
    config = tiny_config("gpt2")
    assert (config.n_embd, config.n_layer) == (32, LAYERS)


def test_the_same_seed_gives_the_same_model_and_leaves_the_random_state():
    state = torch.random.get_rng_state()
    first, second = (tiny_architecture("qwen2") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert not first.training


def test_a_type_that_cannot_be_small_is_refused(monkeypatch):
    monkeypatch.setattr(architectures, "LARGEST", 100)
    with pytest.raises(ValueError, match="the smallest llama has"):
        tiny_architecture("llama")
