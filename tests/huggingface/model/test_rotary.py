"""A model's rotary embedding is the one that it uses now."""

import pytest
import torch

from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.exactness.usages.inputs import read, small_policy
from kvpolicy.huggingface.model.rotary import ModelRotary
from kvpolicy.testing.models import tiny_model
from tests.model_types import needs_type


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


@pytest.mark.parametrize("scale", [1.0, 1.2])
def test_a_models_own_scale_is_taken_out_of_its_angles(scale):
    module = tiny_model("llama").model.rotary_emb
    plain = ModelRotary(module).tables(torch.arange(40))
    module.attention_scaling = scale
    found = ModelRotary(module).tables(torch.arange(40))
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(torch.hypot(*found), torch.ones_like(found[0]))


# Sections of three axes, parts of the channels, interleaved pairs, two modules.
@pytest.mark.parametrize("model_type", ["gemma3_text", "glm", "phi3", "qwen3_5_text", "qwen3_next"])
def test_the_angles_of_a_model_have_norm_one(model_type):
    needs_type(model_type)
    cache = small_policy("streamingllm").cache(tiny_architecture(model_type))
    rotaries = [each for each in cache.session.rotaries if each is not None]
    assert rotaries
    for found in (each.tables(torch.arange(0, 300, 7)) for each in rotaries):
        norms = torch.hypot(*(table.double() for table in found))
        torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-6)
