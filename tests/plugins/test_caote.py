import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidValueError
from kvpolicy.testing import contract, observation

test_contract = contract(plugin="caote")


def error_without_each(layer):
    """||o - o'|| with o' the output of renormalised attention without a position, in float64."""
    groups = layer.queries.shape[1] // layer.keys.shape[1]
    attention = layer.attention.double().mean(2)
    values = layer.values.double().repeat_interleave(groups, dim=1)
    output = torch.einsum("bhs,bhsd->bhd", attention, values)
    errors = []
    for position in range(layer.length):
        rest = attention.clone()
        rest[..., position] = 0
        rest = rest / rest.sum(-1, keepdim=True)
        errors.append((torch.einsum("bhs,bhsd->bhd", rest, values) - output).norm(dim=-1))
    return torch.stack(errors, dim=-1)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_score_is_the_change_of_a_heads_output_without_the_position(groups):
    layer = observation(groups=groups, positions=50, window=32, batch=2)
    scores = kvpolicy.recipe("caote", budget=40).score(layer)
    torch.testing.assert_close(scores.double(), error_without_each(layer), rtol=1e-4, atol=1e-6)


def test_the_output_projection_does_not_matter():
    policy = kvpolicy.recipe("caote", budget=40)
    seen, hidden = (
        observation(positions=50, window=32, **fields) for fields in ({}, {"output_weight": None})
    )
    assert torch.equal(policy.score(seen), policy.score(hidden))


def test_values_decide_where_attention_does_not():
    layer = observation(positions=60, window=32)
    layer.queries.zero_()
    layer.values.zero_()[:, :, [3, 11]] = 5.0

    kept = selected(kvpolicy.recipe("caote", budget=34), layer).indices

    assert kept[0, 0].tolist() == [3, 11, *range(28, 60)]


def test_the_recipe_is_restkvs_score_in_value_space():
    policy = kvpolicy.recipe("caote", budget=64)
    scorer = {"name": "restkv", "projection": "value", "o_includes_window": True}
    assert policy == kvpolicy.compose(scorer=scorer, budget=64)
    assert (policy.scorer.window, policy.recent) == (32, 32)


def test_a_budget_within_the_window_is_refused():
    with pytest.raises(InvalidValueError, match="smaller than the 32 positions"):
        kvpolicy.recipe("caote", budget=16)
