"""What a policy keeps of a prompt that was read by a pattern."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.exactness.usages import small_policy, tokens
from kvpolicy.huggingface.attention import first_prompt
from kvpolicy.testing.models import tiny_model

sys.path.insert(0, str(Path(__file__).parent))
from sparse_prompts import LENGTH, VERTICAL_SLASH, logits

# One process compiles for all of them.
pytestmark = pytest.mark.xdist_group("flex_attention")


@pytest.fixture
def shown(monkeypatch):
    """What the attention of every layer was given and gave, in the order of the layers."""
    prompts, read = [], first_prompt.read_sparsely

    def recorded(pattern, queries, keys, values, lengths, logits):
        prompt = read(pattern, queries, keys, values, lengths, logits)
        prompts.append((queries.clone(), keys.clone(), values.clone(), prompt.output))
        return prompt

    monkeypatch.setattr(first_prompt, "read_sparsely", recorded)
    return prompts


# They score by a second pass of the model, in which the replaced attention would take part.
REPEATING = {"kvzip", "kvzipplus"}


@pytest.mark.parametrize(
    "recipe", sorted({each.name for each in kvpolicy.installed("recipe")} - REPEATING)
)
def test_every_recipe_keeps_what_it_would_after_dense_attention_to_the_same(recipe, shown):
    """Given the inputs of every layer, it does not matter to a score how attention was computed."""
    model, policy = tiny_model("llama"), small_policy(recipe)
    sparse = policy.cache(model, prefill=VERTICAL_SLASH)
    found = logits(model, sparse, tokens(0, LENGTH))
    kvpolicy.restore(model)
    outputs = [prompt[3] for prompt in shown]

    def replayed(module, query, key, value, mask, **kwargs):
        torch.testing.assert_close(query, shown[module.layer_idx][0], atol=0, rtol=0)
        return outputs[module.layer_idx], None

    AttentionInterface.register("replayed", replayed)
    AttentionMaskInterface.register("replayed", eager_mask)
    try:
        model.set_attn_implementation("replayed")
        dense = policy.cache(model)
        assert torch.equal(logits(model, dense, tokens(0, LENGTH)), found)
    finally:
        for interface in (AttentionInterface, AttentionMaskInterface):
            interface._global_mapping.pop("replayed", None)
    for one, other in zip(sparse.positions, dense.positions, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(sparse.policy_layers, dense.policy_layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


@pytest.mark.parametrize("recipe", ["restkv", "snapkv"])
def test_what_is_kept_is_what_the_policy_chooses_of_all_keys(recipe, shown):
    model, policy = tiny_model("llama"), small_policy(recipe)
    cache = policy.cache(model, prefill=VERTICAL_SLASH)
    logits(model, cache, tokens(0, LENGTH))

    for index, (queries, keys, values, _) in enumerate(shown):
        observation = kvpolicy.Observation(
            queries=queries[:, :, -8:],
            keys=keys,
            values=values,
            layer=index,
            num_layers=2,
            output_weight=model.model.layers[index].self_attn.o_proj.weight,
            budget=24,
        )
        assert keys.shape[2] == LENGTH
        assert torch.equal(cache.positions[index], selected(policy, observation).indices)
