import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidValueError
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import USAGES, small_policy
from kvpolicy.stages.smoothing import MeanSmoother, fold_of
from kvpolicy.testing import contract, observation, tiny_model
from kvpolicy_obcache import OutputChangeScorer

test_contract = contract(plugin="obcache")

mean = fold_of(MeanSmoother())
PRUNE = ("joint", "key", "value")


def changes(layer, prune):
    """The three scores of each query [B H W S], written out in float64."""
    groups = layer.queries.shape[1] // layer.keys.shape[1]
    queries = layer.queries.double()
    keys, values = (
        each.double().repeat_interleave(groups, dim=1) for each in (layer.keys, layer.values)
    )
    logits = queries @ keys.mT * layer.scaling
    if layer.softcap is not None:
        logits = layer.softcap * torch.tanh(logits / layer.softcap)
    window, length = logits.shape[-2:]
    later = torch.arange(length) > torch.arange(length - window, length)[:, None]
    masked = logits if layer.ahead else logits.masked_fill(later, -torch.inf)
    if layer.sink_logits is not None:
        column = layer.sink_logits.double()[:, None, None].expand(*masked.shape[:3], 1)
        masked = torch.cat([masked, column], -1)
    attention = masked.softmax(-1)[..., :length]
    outputs = attention @ values
    squares = (values**2).sum(-1)[:, :, None]
    products = outputs @ values.mT
    apart = squares - 2 * products + (outputs**2).sum(-1, keepdim=True)
    terms = {"value": attention**2 * squares, "key": (attention * logits) ** 2 * apart}
    cross = 2 * attention**2 * logits * (squares - products)
    return terms["value"] + terms["key"] + cross if prune == "joint" else terms[prune]


@pytest.mark.parametrize("prune", PRUNE)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(
    "fields",
    [{}, {"softcap": 2.0}, {"sinks": True}, {"ahead": True}],
    ids=["plain", "softcap", "sinks", "ahead"],
)
def test_scores_are_the_equations_in_float64(prune, groups, fields):
    fields = dict(fields)
    if fields.pop("sinks", False):
        fields["sink_logits"] = torch.linspace(-1, 2, 2 * groups)
    layer = observation(positions=50, window=8, batch=2, groups=groups, **fields)
    scores = OutputChangeScorer(window=8, prune=prune).score(layer, mean)
    expected = changes(layer, prune).mean(2)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("prune", PRUNE)
def test_half_precision_is_rounded_only_as_it_is_given(prune):
    layer = observation(positions=50, window=8, dtype=torch.bfloat16)
    scores = OutputChangeScorer(window=8, prune=prune).score(layer, mean)
    assert scores.dtype == torch.float32
    expected = changes(layer, prune).mean(2)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("prune", PRUNE)
def test_a_fold_that_is_no_sum_is_given_each_query(prune):
    layer = observation(positions=20, window=6, batch=2)
    scores = OutputChangeScorer(window=6, prune=prune).score(layer, lambda rows: rows.amax(-2))
    expected = changes(layer, prune).amax(2)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-7)


def test_where_nothing_is_looked_for_the_value_alone_counts():
    layer = observation(positions=30, window=4)
    layer.queries.zero_()
    joint, key, value = (
        OutputChangeScorer(window=4, prune=prune).score(layer, mean) for prune in PRUNE
    )
    assert (key < 1e-12).all()
    torch.testing.assert_close(joint, value)


def test_values_decide_where_attention_does_not():
    layer = observation(positions=60, window=32)
    layer.queries.zero_()
    layer.values.zero_()[:, :, [3, 20]] = 5.0
    policy = kvpolicy.recipe("obcache", smoother={"width": 1}, budget=34)
    assert selected(policy, layer).indices[0, 0].tolist() == [3, 20, *range(28, 60)]


def test_the_recipe_pools_the_maximum_over_seven_positions_of_the_past():
    layer = observation(positions=80, window=32, batch=2)
    scores = kvpolicy.recipe("obcache", budget=40).score(layer)
    past = changes(layer, "joint").mean(2)[..., :48]
    pooled = torch.nn.functional.max_pool1d(past, 7, stride=1, padding=3)
    torch.testing.assert_close(scores[..., :48].double(), pooled, rtol=1e-4, atol=1e-7)


def test_the_recipe_has_snapkvs_window():
    policy = kvpolicy.recipe("obcache", budget=64)
    assert policy.scorer == OutputChangeScorer(window=32, prune="joint")
    assert policy.recent == kvpolicy.recipe("snapkv", budget=64).recent == 32


def test_each_sequence_of_a_batch_is_scored_as_if_alone():
    layer = observation(positions=40, window=8, batch=3)
    scorer = OutputChangeScorer(window=8)
    whole = scorer.score(layer, mean)
    for row in range(3):
        assert torch.equal(scorer.score(layer.row(row), mean), whole[row : row + 1])


def test_it_can_be_asked_by_a_scorer_that_turns_queries():
    layer = attrs.evolve(observation(positions=40, window=6), ahead=True)
    scorer = OutputChangeScorer(window=6)
    assert kvpolicy.recipe("dapq", scorer={"scorer": "obcache"}).scorer.asked.prune == "joint"
    expected = changes(layer, "joint").mean(2)
    torch.testing.assert_close(scorer.score(layer, mean).double(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("prune", PRUNE)
@torch.no_grad()
def test_padded_rows_are_exact(prune):
    policy = small_policy("obcache", scorer={"prune": prune, "window": 8})
    for usage in ("left padded batch", "padded row alone"):
        assert USAGES[usage](tiny_model(), policy) <= LIMIT


@pytest.mark.sampled(4, "usage")
@pytest.mark.parametrize("usage", USAGES)
@torch.no_grad()
def test_every_usage_is_exact_while_it_evicts_every_four_tokens(usage):
    policy = small_policy("obcache", every=4, scorer={"window": 8})
    assert USAGES[usage](tiny_model(), policy) <= LIMIT


def test_mistakes_are_named():
    with pytest.raises(InvalidValueError, match=r"'prune' must be one of .*not 'both'"):
        kvpolicy.compose(scorer={"name": "obcache", "prune": "both"})
    with pytest.raises(InvalidValueError, match="smaller than the 32 positions"):
        kvpolicy.recipe("obcache", budget=16)
