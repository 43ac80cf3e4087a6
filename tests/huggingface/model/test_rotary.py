"""A model's rotary embedding is the one that it uses now."""

import torch

from kvpolicy.exactness.usages.inputs import read, small_policy
from kvpolicy.testing.models import tiny_model


@torch.no_grad()
def test_a_rotary_module_that_replaced_another_is_found():
    """As when somebody gives a model that was used before another rope_theta, for longer texts."""
    policy, turns = small_policy("streamingllm"), (60, 1, 7)
    used, fresh = tiny_model("llama"), tiny_model("llama")
    read(used, policy.cache(used), turns)
    other = tiny_model("llama", rope_theta=500.0).model.rotary_emb
    used.model.rotary_emb = fresh.model.rotary_emb = other
    found = read(used, policy.cache(used), turns)
    expected = read(fresh, policy.cache(fresh), turns)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


@torch.no_grad()
def test_angles_that_are_written_to_are_read_anew():
    policy, turns = small_policy("streamingllm"), (60, 1, 7)
    used, fresh = tiny_model("llama"), tiny_model("llama")
    read(used, policy.cache(used), turns)
    for model in (used, fresh):
        model.model.rotary_emb.inv_freq.mul_(0.5)
    found = read(used, policy.cache(used), turns)
    expected = read(fresh, policy.cache(fresh), turns)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
