"""A prompt is read once, and leaves each cache as a forward of the model would."""

from __future__ import annotations

import pytest
import torch

import kvpolicy
from kvpolicy.evaluation.caches import opened_cache
from kvpolicy.evaluation.recording.read_once import ReadOnce, next_logits
from kvpolicy.testing import tiny_model


@pytest.fixture
def ids():
    return torch.arange(2 * 60).view(2, 60) % 96


@pytest.fixture
def forwards(monkeypatch):
    """Give a function that counts the forwards of a model from now on."""

    def count(model):
        seen = []
        model.register_forward_pre_hook(lambda *_: seen.append(1))
        return seen

    return count


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("recipe", ["restkv", "streamingllm", "h2o", "lava", "replay", "kvzip"])
def test_a_cache_goes_on_as_if_the_model_had_read(ids, recipe, attention):
    model = tiny_model()
    model.set_attn_implementation(attention)
    policy, follows = kvpolicy.recipe(recipe, budget=40), ids[:, :1]
    reader = ReadOnce(model)
    with torch.inference_mode():
        for prompt in (ids, ids.flip(1), ids):
            with policy.cache(model) as ours, policy.cache(model) as theirs:
                found, expected = reader.read(ours, prompt), next_logits(model, theirs, prompt)
                assert torch.equal(found, expected)
                for mine, other in zip(ours.positions, theirs.positions, strict=True):
                    assert torch.equal(mine, other)
                for _ in range(3):
                    after = next_logits(model, ours, follows), next_logits(model, theirs, follows)
                    assert torch.equal(*after)


def test_the_model_reads_once_for_many_caches(ids, forwards):
    model = tiny_model()
    reader, seen = ReadOnce(model), forwards(model)
    policy = kvpolicy.recipe("streamingllm", budget=16)
    with torch.inference_mode():
        for _ in range(3):
            with policy.cache(model) as cache:
                reader.read(cache, ids)
    assert len(seen) == 1


def test_windows_are_read_by_the_model(ids, forwards):
    model = tiny_model("gemma3_text")
    reader, seen = ReadOnce(model), forwards(model)
    policy = kvpolicy.recipe("streamingllm", budget=16)
    with torch.inference_mode():
        for _ in range(2):
            with policy.cache(model) as cache:
                reader.read(cache, ids)
                assert cache.seen == ids.shape[1]
    assert len(seen) == 2


def test_a_full_cache_is_read_by_the_model(ids):
    model = tiny_model()
    with torch.inference_mode(), opened_cache(model, None) as cache:
        found = ReadOnce(model).read(cache, ids)
        assert cache.get_seq_length() == ids.shape[1]
        assert torch.equal(found, model(ids).logits[:, -1])


def test_the_model_is_left_as_it_was_found(ids):
    model = tiny_model()
    reader, policy = ReadOnce(model), kvpolicy.recipe("snapkv", budget=40)
    with torch.inference_mode():
        expected = model(ids).logits
        with policy.cache(model) as cache:
            reader.read(cache, ids)
        assert torch.equal(model(ids).logits, expected)
    assert not any(each._forward_pre_hooks for each in model.modules())
