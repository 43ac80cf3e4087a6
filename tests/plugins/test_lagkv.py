from itertools import pairwise

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidValueError
from kvpolicy.testing import contract, observation
from kvpolicy_lagkv import LagScorer

test_contract = contract(plugin="lagkv")

SINKS, LAG = 4, 8


def policy_of(budget, **options):
    scorer = {"name": "lagkv", "sinks": SINKS, "lag": LAG} | options
    return kvpolicy.recipe("lagkv", scorer=scorer, sinks=SINKS, budget=budget)


def scores_of(layer, **options):
    scorer = LagScorer(**{"sinks": SINKS, "lag": LAG} | options)
    return scorer.score(layer, lambda rows: rows.mean(-2))


@pytest.mark.golden("lagkv")
def test_kept_positions_are_the_authors(case):
    params = case.params
    expected = case.array("kept_in_emitted_order").long().sort(-1).values
    policy = kvpolicy.compose(
        scorer={
            "name": "lagkv",
            "sinks": params["sink_size"],
            "lag": params["lag_size"],
            "value_weight": params["score_v_ratio"],
        },
        sinks=params["sink_size"],
        budget=expected.shape[-1],
    )

    assert torch.equal(selected(policy, case.observation(window=1)).indices, expected)


def information(rows, reference):
    """Softmax over rows of the deviation of their channels, in the scale of the reference."""
    low, high = reference.amin(0), reference.amax(0)
    return ((rows - low) / (high - low)).std(-1).softmax(0)


def expected_order(layer, head, value_weight):
    """Rows of each stretch that has one to be compared with, from best to worst, by its number."""
    stretches = (layer.positions[0, head] - SINKS).div(LAG, rounding_mode="floor")
    complete = (layer.seen - SINKS) // LAG
    held = [n for n in range(complete) if (stretches == n).any()]
    order = {}
    for stretch, behind in pairwise(held):
        own, reference = ((stretches == n).nonzero()[:, 0] for n in (stretch, behind))
        keys, values = (states[0, head].double() for states in (layer.keys, layer.values))
        gained = information(keys[own], keys[reference])
        gained += value_weight * information(values[own], values[reference])
        order[stretch] = own[gained.argsort(descending=True)].tolist()
    return order


def cut_to(layer, positions, seen):
    """What is left of a prompt's layer when each head holds other positions."""
    rows = positions[..., None].expand(-1, -1, -1, layer.keys.shape[-1])
    return attrs.evolve(
        layer,
        keys=layer.keys.gather(2, rows),
        values=layer.values.gather(2, rows),
        positions=positions,
        seen=seen,
    )


def with_gaps(missing=()):
    """A layer that has lost `missing`, and in each head another third of its judged positions."""
    left = [p for p in range(SINKS, 45) if p not in missing]
    gone = [{*missing, *left[head::3]} for head in range(2)]
    positions = torch.tensor([[[p for p in range(61) if p not in lost] for lost in gone]])
    return cut_to(observation(positions=61, window=1), positions, seen=61)


@pytest.mark.parametrize("value_weight", [1.0, 0.25])
@pytest.mark.parametrize(
    "layer",
    [
        observation(positions=61, window=1),
        observation(positions=60, window=1, seed=9),
        with_gaps(),
        with_gaps(missing=range(SINKS + LAG, SINKS + 2 * LAG)),
    ],
    ids=["prompt", "whole partitions", "after evictions", "a partition is gone"],
)
def test_a_partitions_rows_rank_by_how_unlike_the_next_one_they_are(layer, value_weight):
    scores = scores_of(layer, value_weight=value_weight)
    for head in range(2):
        order = expected_order(layer, head, value_weight)
        assert len(order) >= 4
        for rows in order.values():
            ranked = scores[0, 2 * head, rows]
            assert (ranked.diff() < 0).all()
            assert (-ranked).floor().tolist() == list(range(len(rows)))
            assert torch.equal(scores[0, 2 * head + 1, rows], ranked)


def test_what_has_no_complete_partition_behind_it_ranks_by_recency_above_the_rest():
    layer = observation(positions=SINKS + 4 * LAG + 3, window=1)
    scores = scores_of(layer)[0, 0]
    judged, tail = scores[SINKS : SINKS + 3 * LAG], scores[SINKS + 3 * LAG :]
    assert judged.max() < 0 < tail.min()
    assert (tail.diff() > 0).all()
    assert (scores[:SINKS] > tail.max()).all()


def test_a_prompt_of_fewer_than_two_partitions_keeps_the_most_recent():
    kept = selected(policy_of(budget=10), observation(positions=SINKS + 2 * LAG - 1, window=1))
    assert kept.indices.tolist() == [[[0, 1, 2, 3, 13, 14, 15, 16, 17, 18]] * 2]


def shares(positions):
    """How many rows of each stretch a head holds."""
    stretches = (positions - SINKS).div(LAG, rounding_mode="floor")
    return torch.bincount(stretches[stretches >= 0]).tolist()


def test_every_partition_keeps_an_equal_share_and_the_later_ones_the_remainder():
    # Five partitions and a tail of 3: four are judged, and share 47 - 4 - 11 positions but 2.
    layer = observation(positions=SINKS + 5 * LAG + 3, window=1)
    kept = selected(policy_of(budget=SINKS + 4 * 5 + 2 + LAG + 3), layer).indices
    for head in kept[0]:
        assert shares(head) == [5, 5, 6, 6, 8, 3]


def read_on(policy, start=150, stop=300):
    """Read a prompt, then a partition at a time; yield what has been seen and what heads hold."""
    whole = observation(positions=stop, window=1)
    positions = torch.empty(1, 2, 0, dtype=torch.long)
    for before, seen in pairwise([0, *range(start, stop + 1, LAG)]):
        positions = torch.cat([positions, torch.arange(before, seen).expand(1, 2, -1)], -1)
        selection = selected(policy, cut_to(whole, positions, seen))
        positions = positions.gather(-1, selection.indices)
        yield seen, positions


def test_shares_stay_equal_when_it_evicts_again():
    for seen, positions in read_on(policy_of(budget=60)):
        for head in positions[0]:
            *judged, last, newest = shares(head)
            assert (last, newest) == (LAG, (seen - SINKS) % LAG)
            assert max(judged) - min(judged) <= 1
            assert head[:SINKS].tolist() == list(range(SINKS))


def test_with_a_share_as_budget_a_partition_keeps_what_it_has_kept():
    held = [positions for _, positions in read_on(policy_of(budget=0.5))]
    for earlier, later in pairwise(held):
        tail = earlier[0, 0, -1] - 2 * LAG
        for head in range(2):
            kept = earlier[0, head][earlier[0, head] < tail]
            assert torch.isin(kept, later[0, head]).all()


@pytest.mark.parametrize("spread", [0.0, 1e-38, 1e-30, 1e-8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_partitions_that_hardly_vary_give_finite_scores(spread, dtype):
    layer = observation(positions=61, window=1, dtype=dtype)
    keys = layer.keys.clone()
    keys[:, :, 12:20] *= spread
    values = layer.values * spread
    scores = scores_of(attrs.evolve(layer, keys=keys, values=values))
    assert scores.isfinite().all()
    # Ranks are a permutation all the same: no two positions share a score.
    assert (scores[0, 0, SINKS:].unique().shape) == (61 - SINKS,)


def test_channels_without_a_scale_say_nothing():
    layer = observation(positions=SINKS + 3 * LAG, window=1)
    flat = layer.keys.clone()
    flat[:, :, SINKS + LAG : SINKS + 2 * LAG, ::2] = 0.5
    loud = flat.clone()
    loud[:, :, SINKS : SINKS + LAG, ::2] *= 100
    first = slice(SINKS, SINKS + LAG)
    assert torch.equal(
        scores_of(attrs.evolve(layer, keys=flat))[..., first],
        scores_of(attrs.evolve(layer, keys=loud))[..., first],
    )


def test_where_keys_leave_every_scale_values_rank():
    layer = observation(positions=SINKS + 3 * LAG, window=1)
    tiny = 1 + layer.keys.abs()
    behind = slice(SINKS + LAG, SINKS + 2 * LAG)
    tiny[:, :, behind] = 1e-30 * layer.keys[:, :, behind]
    first = slice(SINKS, SINKS + LAG)
    assert torch.equal(
        scores_of(attrs.evolve(layer, keys=tiny))[..., first],
        scores_of(attrs.evolve(layer, keys=torch.ones_like(tiny)))[..., first],
    )


def test_the_recipe_has_the_authors_sinks_and_evicts_partition_by_partition():
    policy = kvpolicy.recipe("lagkv")
    assert (policy.scorer.sinks, policy.sinks) == (16, 16)
    assert policy.scorer.lag == policy.every == 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "'window' must be at least 1, not 0"),
        ({"sinks": -1}, "'sinks' must be at least 0, not -1"),
        ({"lag": 0}, "'lag' must be at least 1, not 0"),
        ({"lag": 0.5}, "'lag' must be an int, not 0.5"),
        ({"value_weight": 0}, "'value_weight' must be above 0 and finite, not 0"),
        ({"value_weight": "x"}, "'value_weight' must be a number, not 'x'"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InvalidValueError, match=f"scorer 'lagkv': {message}"):
        kvpolicy.compose(scorer={"name": "lagkv", **options})


def test_other_sinks_than_the_policys_are_refused():
    with pytest.raises(InvalidValueError, match=r"the policy has sinks=4, .* sinks=16"):
        kvpolicy.recipe("lagkv", sinks=4)
    policy = kvpolicy.recipe("lagkv", sinks=4, scorer={"name": "lagkv", "sinks": 4})
    assert policy.sinks == policy.scorer.sinks == 4
    assert kvpolicy.compose(scorer="lagkv").sinks == 0


@pytest.mark.parametrize("positions", [3, 4, 12, 20, 21, 61])
@pytest.mark.parametrize("channels", [1, 8])
def test_a_text_held_whole_is_ranked_as_one_with_gaps(positions, channels, monkeypatch):
    layer = observation(positions=positions, dim=channels, seed=positions)
    whole = scores_of(layer)
    monkeypatch.setattr("kvpolicy_lagkv.scoring.is_whole", lambda observation: False)

    assert torch.equal(whole, scores_of(layer))
