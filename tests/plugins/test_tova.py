from itertools import pairwise
from typing import ClassVar

import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidValueError
from kvpolicy.stages.allocation import UniformAllocator
from kvpolicy.stages.smoothing import MeanSmoother, fold_of
from kvpolicy.testing import contract, observation
from kvpolicy_tova import OmissionScorer

test_contract = contract(plugin="tova")

mean = fold_of(MeanSmoother())


def decoded(policy, case, steps):
    """Read a case's prompt, then token by token; yield the positions that each head holds."""
    queries, keys, values = (case.tensor(name) for name in "qkv")
    length = keys.shape[2]
    held_keys, held_values = keys[:, :, :0], values[:, :, :0]
    positions = torch.empty(*keys.shape[:2], 0, dtype=torch.long)
    for start, stop in pairwise([0, *range(length - steps, length + 1)]):
        new = torch.arange(start, stop).expand(*keys.shape[:2], -1)
        layer = kvpolicy.Observation(
            queries=queries[:, :, stop - 1 : stop],
            keys=torch.cat([held_keys, keys[:, :, start:stop]], 2),
            values=torch.cat([held_values, values[:, :, start:stop]], 2),
            positions=torch.cat([positions, new], -1),
            seen=stop,
        )
        selection = selected(policy, layer)
        held_keys, held_values = policy.compact(layer.keys, layer.values, selection, layer)
        positions = layer.positions.gather(-1, selection.indices)
        yield positions


@pytest.mark.golden("tova")
def test_every_step_keeps_what_the_authors_code_keeps(case):
    sizes = case.array("kept_len_by_step").tolist()
    policy = kvpolicy.recipe("tova", budget=case.params["cache_size"])

    steps = list(decoded(policy, case, steps=len(sizes) - 1))

    assert [positions.shape[-1] for positions in steps] == sizes
    for head in range(steps[0].shape[1]):
        kept = torch.cat([positions[0, head] for positions in steps])
        assert torch.equal(kept, case.array("kept_flat_by_step").long())


def test_all_heads_get_the_mean_attention_of_the_last_query():
    layer = observation(positions=20, window=1, batch=2)
    expected = layer.attention.double()[:, :, 0].mean(1, keepdim=True).expand(-1, 4, -1)
    scores = OmissionScorer().score(layer, mean)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-7)


def test_a_longer_window_is_folded_by_the_smoother():
    layer = observation(positions=20, window=4)
    scores = OmissionScorer(window=4).score(layer, lambda rows: rows.amax(-2))
    expected = layer.attention.amax(2).mean(1, keepdim=True).expand(-1, 4, -1)
    torch.testing.assert_close(scores, expected)


def test_value_weights_count_in_each_head_before_the_mean():
    layer = observation(positions=20, window=1)
    norms = layer.values.norm(p=1, dim=-1).repeat_interleave(2, 1)
    expected = (layer.attention[:, :, 0] * norms).mean(1, keepdim=True).expand(-1, 4, -1)
    scores = OmissionScorer(value_weighted=True).score(layer, mean)
    torch.testing.assert_close(scores, expected)


def test_the_recipe_protects_nothing_and_the_newest_token_can_go():
    # Every query likes the last key least.
    keys = torch.ones(1, 2, 12, 4)
    keys[:, :, -1] = -9.0
    layer = kvpolicy.Observation(queries=torch.ones(1, 4, 1, 4), keys=keys, values=keys)
    policy = kvpolicy.recipe("tova", budget=11)
    assert (policy.protected, policy.every) == (0, 1)
    assert torch.equal(selected(policy, layer).indices, torch.arange(11).expand(1, 2, -1))


def test_an_allocator_that_treats_heads_apart_is_refused():
    class UnevenAllocator(UniformAllocator):
        uneven: ClassVar[bool] = True

    with pytest.raises(InvalidValueError, match=r"'tova'.* needs all heads of a layer to hold"):
        kvpolicy.recipe("tova", allocator=UnevenAllocator())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "'window' must be at least 1, not 0"),
        ({"window": 1.0}, "'window' must be an int, not 1.0"),
        ({"value_weighted": 1}, "'value_weighted' must be True or False, not 1"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InvalidValueError, match=f"scorer 'tova': {message}"):
        kvpolicy.compose(scorer={"name": "tova", **options})
