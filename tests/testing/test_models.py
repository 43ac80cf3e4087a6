"""Tiny models predict, and are the same each time."""

import pytest
import torch

from kvpolicy import errors, testing


@pytest.mark.parametrize("family", testing.FAMILIES)
def test_a_tiny_model_of_each_family_predicts(family):
    attention = "eager" if family == "gemma2" else "sdpa"
    model = testing.tiny_model(family, attn_implementation=attention)
    logits = model(torch.arange(1, 40)[None]).logits
    assert logits.shape == (1, 39, 128)
    assert logits.isfinite().all()
    assert logits.std() > 0.1


def test_a_tiny_model_is_the_same_each_time_and_leaves_the_random_state_alone():
    state = torch.random.get_rng_state()
    first, second = (testing.tiny_model("llama", seed=3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


def test_an_unknown_family_gets_the_families_there_are():
    with pytest.raises(errors.InvalidValueError, match="Did you mean 'llama'"):
        testing.tiny_model("lama")
