"""A few rows that go while decoding leave the others in the memory that they are in."""

import pytest
import torch

from kvpolicy.cache.eviction import evict as room
from kvpolicy.cache.memory.rows import Rows
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import read, tokens
from kvpolicy.testing.models import tiny_model

TURNS = (60, 1, 1, 1, 5, *[1] * 20)


def memories(cache):
    return [layer.memory.contents.keys.buffer.data_ptr() for layer in cache.policy_layers]


@pytest.mark.parametrize("recipe", ["h2o", "tova", "streamingllm", "lacache", "keydiff"])
@torch.no_grad()
def test_what_is_moved_is_what_would_be_copied(recipe, monkeypatch):
    model, policy = tiny_model("llama"), small_policy(recipe)
    moved, copied = policy.cache(model), policy.cache(model)
    found = read(model, moved, TURNS)
    monkeypatch.setattr(room, "_moved", lambda *_: False)
    expected = read(model, copied, TURNS)

    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(moved.policy_layers, copied.policy_layers, strict=True):
        assert torch.equal(ours.positions, theirs.positions)
        assert ours.memory.is_consistent(ours.seen)
        assert torch.equal(ours.keys, theirs.keys)


@torch.no_grad()
def test_decoding_stays_in_its_memory_and_a_prompt_gives_its_own_back():
    model = tiny_model("llama")
    cache = small_policy("h2o").cache(model)
    read(model, cache, (60,))
    assert all(layer.memory.contents.keys.buffer.shape[2] == 24 for layer in cache.policy_layers)
    read(model, cache, (1,))
    before = memories(cache)
    read(model, cache, [1] * 50)
    assert memories(cache) == before


@torch.no_grad()
def test_a_copy_goes_its_own_way():
    model = tiny_model("llama")
    cache = small_policy("h2o").cache(model)
    read(model, cache, (60, 1, 1))
    twin, keys = cache.clone(), [layer.keys.clone() for layer in cache.policy_layers]
    read(model, twin, [1] * 5, first_seed=7)
    for layer, before in zip(cache.policy_layers, keys, strict=True):
        assert torch.equal(layer.keys, before)


def test_gradients_of_a_forward_that_evicts_flow():
    model = tiny_model("llama").requires_grad_()
    cache = small_policy("h2o").cache(model)
    with torch.no_grad():
        read(model, cache, (60, 1, 1))
    before = memories(cache)
    with torch.enable_grad():
        model(input_ids=tokens(3, 1), past_key_values=cache).logits.square().sum().backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.isfinite().all()
    assert memories(cache) != before


@pytest.mark.parametrize(
    ("held", "capacity", "fits"),
    [(24, 56, True), (24, 57, False), (800, 900, True), (800, 901, False)],
)
def test_memory_is_kept_for_what_nearly_fills_it(held, capacity, fits):
    rows = Rows(torch.zeros(1, 1, capacity, 4))
    assert rows.fits(held) == fits


def test_memory_of_inference_mode_is_left_outside_it():
    with torch.inference_mode():
        rows = Rows(torch.zeros(1, 1, 30, 4))
        assert rows.fits(24)
    assert not rows.fits(24)
