"""Scorer `jointrestkv`: a group loses a position at once, and that error is exact."""

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.stages.grouping import reduce_groups
from kvpolicy.stages.smoothing import fold_of
from kvpolicy.testing import check, observation
from kvpolicy_restkv import (
    JointReconstructionScorer,
    ReconstructionScorer,
    SpatiotemporalSmoother,
)

EMA = fold_of(SpatiotemporalSmoother(averaging="ema"))


def leave_one_out(attention, values, blocks):
    """||sum_h W_h (o_h without i - o_h)||, by renormalising every head without i: [B N S].

    `attention` is [B H S], `values` [B N S D] and `blocks` W_h [H M D], all in float64.
    """
    kv_heads, groups = values.shape[1], attention.shape[1] // values.shape[1]
    values = values.repeat_interleave(groups, dim=1)
    output = attention[..., None, :] @ values
    errors = []
    for position in range(values.shape[2]):
        rest = attention.clone()
        rest[..., position] = 0
        rest = rest / rest.sum(-1, keepdim=True)
        change = (rest[..., None, :] @ values - output).squeeze(-2)
        behind = torch.einsum("hmd,bhd->bhm", blocks, change)
        errors.append(behind.unflatten(1, (kv_heads, groups)).sum(2).norm(dim=-1))
    return torch.stack(errors, dim=-1)


def exactly(layer):
    """A layer's averaged attention, its values and its heads' projections, in float64."""
    blocks = layer.output_weight.double().unflatten(1, (layer.queries.shape[1], -1))
    attention = EMA(layer.attention.double())
    # What was rounded to float32 does not sum to 1.
    attention = attention / attention.sum(-1, keepdim=True)
    return attention, layer.values.double(), blocks.transpose(0, 1)


@pytest.mark.parametrize("model_dim", [7, 16, 64])
@pytest.mark.parametrize("groups", [1, 3])
def test_scores_are_that_error_for_every_query_head_of_the_group(groups, model_dim):
    layer = observation(groups=groups, positions=20, batch=2, model_dim=model_dim)
    scorer = JointReconstructionScorer(o_includes_window=True)

    scores = scorer.score(layer, EMA)

    expected = leave_one_out(*exactly(layer)).repeat_interleave(groups, dim=1)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-6)


def test_in_value_space_the_heads_of_a_group_do_not_mix():
    layer = observation(positions=20)
    alone, joint = (
        scorer(projection="value").score(layer, EMA)
        for scorer in (ReconstructionScorer, JointReconstructionScorer)
    )
    squares = reduce_groups(alone.square(), 2, "sum")
    torch.testing.assert_close(joint[:, ::2], squares.sqrt())


def test_a_group_of_one_scores_as_its_only_head():
    layer = observation(groups=1, positions=20)
    alone, joint = (
        scorer().score(layer, EMA) for scorer in (ReconstructionScorer, JointReconstructionScorer)
    )
    torch.testing.assert_close(joint, alone, rtol=1e-5, atol=1e-6)


def test_errors_of_heads_can_cancel_and_never_add_up_to_more_than_their_sum():
    layer = observation(groups=2, positions=20)
    alone, joint = (
        scorer().score(layer, EMA) for scorer in (ReconstructionScorer, JointReconstructionScorer)
    )
    assert (joint[:, ::2] <= reduce_groups(alone, 2, "sum") * (1 + 1e-5)).all()

    opposite = layer.output_weight.unflatten(1, (2, 2, 8)).clone()
    opposite[:, :, 1] = -opposite[:, :, 0]
    queries = layer.queries.unflatten(1, (2, 2))[:, :, :1].expand(-1, -1, 2, -1, -1).flatten(1, 2)
    twins = attrs.evolve(layer, queries=queries, output_weight=opposite.flatten(1))
    cancelled = JointReconstructionScorer().score(twins, EMA)
    torch.testing.assert_close(cancelled, torch.zeros_like(cancelled), rtol=0, atol=1e-6)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_head_that_is_shown_alone_is_scored_by_its_own_columns(index):
    layer = observation(heads=3, groups=2, positions=20)
    scorer = JointReconstructionScorer()
    whole = scorer.score(layer, EMA)[:, 2 * index : 2 * index + 2]
    torch.testing.assert_close(scorer.score(layer.head(index), EMA), whole)


@pytest.mark.parametrize("group", ["max", "sum"])
def test_without_pooling_the_group_reduction_has_nothing_to_choose(group):
    layer = observation(positions=60)
    parts = {
        "scorer": {"name": "jointrestkv", "window": 8},
        "smoother": {"name": "spatiotemporal", "pooling": "none"},
        "budget": 20,
    }
    mean, other = (kvpolicy.compose(**parts, group=name) for name in ("mean", group))
    assert torch.equal(selected(mean, layer).indices, selected(other, layer).indices)


def test_factors_of_groups_and_of_heads_are_remembered_side_by_side():
    layer = observation(groups=2)
    of_heads = layer.output_factors
    of_groups = layer.group_factors
    assert of_groups.shape == (2, 16, 16)
    assert layer.group_factors.data_ptr() == of_groups.data_ptr()
    assert torch.equal(layer.head(1).group_factors[0], of_groups[1])
    assert layer.output_factors.data_ptr() == of_heads.data_ptr()


def test_a_model_that_hides_its_output_projection_is_refused_with_the_way_out():
    layer = observation(output_weight=None)
    with pytest.raises(UnsupportedModelError, match=r"scorer 'jointrestkv' .* projection='value'"):
        JointReconstructionScorer().score(layer, EMA)
    in_value_space = JointReconstructionScorer(projection="value")
    assert in_value_space.score(layer, EMA).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "'window' must be at least 1, not 0"),
        ({"projection": "both"}, "'projection' must be one of .*'output', 'value'.*'both'"),
        ({"o_includes_window": 1}, "'o_includes_window' must be True or False, not 1"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InvalidValueError, match=message):
        JointReconstructionScorer(**options)
    with pytest.raises(InvalidValueError, match=f"scorer 'jointrestkv': {message}"):
        kvpolicy.compose(scorer={"name": "jointrestkv", **options})


@pytest.mark.parametrize("projection", ["output", "value"])
def test_joint_heads_keep_the_promises_of_a_scorer(projection):
    check("scorer", JointReconstructionScorer(projection=projection))
