"""Logits are those of a full cache whose evicted entries are masked."""

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.errors import CacheStateError
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import BITWISE, OF_PLAIN_DATA, USAGES, small_policy, tokens
from kvpolicy.stages.compaction import GatherCompactor
from kvpolicy.stages.selection import Selection
from kvpolicy.testing.models import FAMILIES, tiny_model

# transformers refuses Gemma 2's softcap with sdpa.
MODELS = [(family, "eager") for family in FAMILIES] + [
    (family, "sdpa") for family in FAMILIES if family != "gemma2"
]


@pytest.mark.sampled(20, "family", "usage")
@pytest.mark.parametrize("usage", USAGES)
@pytest.mark.parametrize(("family", "attention"), MODELS)
def test_every_usage_is_exact_on_every_family(family, attention, usage):
    model, policy = tiny_model(family, attn_implementation=attention), small_policy("restkv")
    windows = "sliding_attention" in (getattr(model.config, "layer_types", None) or ())
    if usage == "after crop" and windows:
        with pytest.raises(CacheStateError, match="holds only its sliding window"):
            USAGES[usage](model, policy)
    else:
        assert USAGES[usage](model, policy) <= (0 if usage in BITWISE else LIMIT)


@pytest.mark.sampled(8, "policy", "usage")
@pytest.mark.parametrize("usage", USAGES)
@pytest.mark.parametrize(
    "policy",
    [
        {"budget": 0.4},
        {"every": 3},
        {"budget": 0.4, "every": 3},
        {"sinks": 2, "group": "max"},
    ],
    ids=str,
)
def test_every_usage_is_exact_under_every_kind_of_policy(policy, usage):
    assert (
        USAGES[usage](tiny_model("llama"), small_policy(**{"recipe": "restkv"} | policy)) <= LIMIT
    )


UNCHANGING = [
    part.name
    for part in kvpolicy.installed("recipe")
    if isinstance(small_policy(part.name).compactor, GatherCompactor)
]


@pytest.mark.sampled(37, "recipe", "usage")
@pytest.mark.parametrize("usage", USAGES)
@pytest.mark.parametrize("recipe", UNCHANGING)
def test_every_usage_is_exact_under_every_recipe(recipe, usage):
    # The ladder of recipe `lacache` needs several layers.
    model = tiny_model("llama", num_hidden_layers=4)
    assert USAGES[usage](model, small_policy(recipe)) <= LIMIT


@attrs.frozen
class Funnel:
    """Gives each layer half of what it gives the layer before."""

    def allocate(self, scores, observation, budget):
        count = max(budget // 2**observation.layer, 8)
        return torch.full(scores.shape[:2], min(count, scores.shape[-1]))


@pytest.mark.sampled(3, "attention", "usage")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("usage", sorted(set(USAGES) - OF_PLAIN_DATA))
def test_layers_may_hold_different_numbers_of_positions(usage, attention):
    model = tiny_model("llama", num_hidden_layers=3, attn_implementation=attention)

    assert USAGES[usage](model, small_policy("restkv", allocator=Funnel())) <= LIMIT


def test_a_row_keeps_what_its_prompt_alone_keeps():
    model, policy = tiny_model("llama"), small_policy("restkv", budget=0.5)
    ids = tokens(0, batch=2)
    mask = torch.ones_like(ids)
    mask[1, :20] = 0
    together, alone = policy.cache(model), policy.cache(model)

    model(input_ids=ids, attention_mask=mask, past_key_values=together)
    model(input_ids=ids[1:, 20:], past_key_values=alone)

    for padded, plain in zip(together.positions, alone.positions, strict=True):
        held = plain.shape[-1]
        assert torch.equal(padded[1, :, :held], plain[0])
        assert (padded[1, :, held:] == -1).all()


def test_a_layer_keeps_exactly_the_rows_of_its_selection():
    model, policy = tiny_model("llama"), small_policy("restkv")
    chosen = []

    @attrs.frozen
    class Spy:
        def compact(self, keys, values, selection: Selection, observation):
            chosen.append((keys.clone(), selection.indices.clone()))
            return policy.compactor.compact(keys, values, selection, observation)

    cache = attrs.evolve(policy, compactor=Spy()).cache(model)
    model(input_ids=tokens(0), past_key_values=cache)

    for layer, (keys, rows) in zip(cache.policy_layers, chosen, strict=True):
        expected = keys.gather(2, rows[..., None].expand(-1, -1, -1, keys.shape[-1]))
        assert torch.equal(layer.keys, expected)
