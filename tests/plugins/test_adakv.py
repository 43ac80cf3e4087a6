import itertools

import numpy as np
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidValueError
from kvpolicy.stages.grouping import reduce_groups
from kvpolicy.testing import contract, observation
from kvpolicy_adakv import AdaptiveAllocator

test_contract = contract(plugin="adakv")

POOLING = {"avgpool": "avg", "maxpool": "max"}


def authors_allocator(params):
    return AdaptiveAllocator(
        floor=params.get("floor", params.get("floor_alpha")),
        normalize=params["normalize"],
        rounding="nearest",
    )


def policy_of(case):
    params = case.params
    return kvpolicy.compose(
        scorer={"name": "snapkv", "window": params["window_size"]},
        smoother={
            "name": "pooling",
            "pooling": POOLING[params["pooling"]],
            "width": params["kernel_size"],
        },
        allocator=authors_allocator(params),
        budget=params.get("max_capacity_prompt") or params["base_capacity"],
    )


def observation_of(case):
    budget = policy_of(case).budget
    return case.observation(window=case.params["window_size"], budget=budget)


def kept_by_the_authors(case):
    """The positions of each head, in order."""
    lengths = case.array("head_lens").tolist()
    return [head.long().sort().values for head in case.array("kept_flat").split(lengths)]


def check_kept(case, scores, selection):
    """Equal sets; where neighbours share a score at a head's cut, equal scores."""
    gaps = case.fields["min_relative_score_gap_at_cut_per_head"]
    for head, (expected, gap) in enumerate(zip(kept_by_the_authors(case), gaps, strict=True)):
        got = selection.indices[0, head, : len(expected)]
        if gap > 1e-5:
            assert torch.equal(got, expected)
        else:
            kept = (scores[0, head, rows].sort().values for rows in (got, expected))
            torch.testing.assert_close(*kept, rtol=2e-4, atol=0)


@pytest.mark.golden("adakv")
def test_budgets_and_kept_positions_are_the_authors(case):
    policy, layer = policy_of(case), observation_of(case)

    scores = policy.rank(layer)
    selection = selected(policy, layer)

    past = scores[..., : layer.length - layer.window]
    torch.testing.assert_close(past, case.array("head_scores"), rtol=2e-4, atol=0)
    assert selection.lengths.tolist() == [case.array("head_lens").tolist()]
    check_kept(case, scores, selection)


@pytest.mark.golden("adakv_gqa")
def test_budgets_of_a_grouped_cache_are_the_authors(case):
    """Their code averages the group before it pools, so its scores are what is ranked here."""
    policy, layer = policy_of(case), observation_of(case)
    theirs = case.array("head_scores")
    scores = torch.nn.functional.pad(theirs, (0, layer.window), value=torch.inf)

    budgets = policy.allocate(scores, layer)

    assert budgets.tolist() == [case.array("head_lens").tolist()]
    check_kept(case, scores, policy.choose(scores, budgets))
    # That order of mean and maximum is the whole difference.
    mean = reduce_groups(layer.folded_attention(lambda rows: rows.mean(-2)), 2, "mean")
    past = mean[..., : layer.length - layer.window]
    width = case.params["kernel_size"]
    pooled = torch.nn.functional.max_pool1d(past, width, stride=1, padding=width // 2)
    torch.testing.assert_close(pooled, theirs, rtol=2e-4, atol=0)


@pytest.mark.golden("adakv_kvpress")
def test_a_guarantee_keeps_what_kvpress_does(case):
    params, scores = case.params, case.tensor("fixed_scores")
    budget = int(scores.shape[-1] * (1 - params["compression_ratio"]))
    allocator = AdaptiveAllocator(mode="guarantee", floor=params["alpha_safeguard"])
    policy = kvpolicy.compose(scorer="random", allocator=allocator, budget=budget)
    layer = case.observation(window=1, budget=budget)

    selection = policy.choose(scores, policy.allocate(scores, layer))

    for head, pruned in enumerate(case.array("pruned_mask")):
        kept = selection.indices[0, head, : selection.lengths[0, head]]
        assert torch.equal(kept, (pruned == 0).nonzero()[:, 0])


def scores_of(seed, heads=3, positions=40, protected=4):
    """Heads of very different spread, as attention would be, the last positions protected."""
    noise = torch.randn(1, heads, positions, generator=torch.Generator().manual_seed(seed))
    scores = (noise * torch.logspace(-1, 1, heads)[:, None]).softmax(-1)
    scores[..., positions - protected :] = torch.inf
    return scores


def counts(allocator, scores, budget):
    return allocator.allocate(scores, observation(positions=scores.shape[-1]), budget)[0].tolist()


def by_hand(scores, budget, floor, mode):
    """The equations, one position at a time."""
    heads = scores[0].double().numpy()
    if mode == "guarantee":
        heads = heads.copy()
        for head in heads:
            head[np.argsort(-head)[: int(floor * budget)]] = np.inf
    order = np.argsort(-heads.ravel(), kind="stable")[: len(heads) * budget]
    competed = np.bincount(order // heads.shape[1], minlength=len(heads))
    if mode == "guarantee":
        return competed.tolist()
    return [int((1 - floor) * count + floor * budget + 1e-9) for count in competed]


@pytest.mark.parametrize("mode", ["blend", "guarantee"])
@pytest.mark.parametrize("floor", [0.0, 0.2, 0.5, 1.0])
def test_counts_follow_the_equations(mode, floor):
    allocator = AdaptiveAllocator(mode=mode, floor=floor)
    for seed, budget in itertools.product(range(5), [4, 5, 13, 20, 40]):
        scores = scores_of(seed)
        assert counts(allocator, scores, budget) == by_hand(scores, budget, floor, mode)


@pytest.mark.parametrize("mode", ["blend", "guarantee"])
def test_a_layer_spends_its_budget_but_for_the_rounding_of_a_blend(mode):
    allocator = AdaptiveAllocator(mode=mode)
    for seed, budget in itertools.product(range(5), range(4, 41)):
        got = counts(allocator, scores_of(seed), budget)
        lost = 3 * budget - sum(got)
        assert lost == 0 if mode == "guarantee" else 0 <= lost < 3
        assert min(got) >= max(4, int(0.2 * budget)), "the protected and the floor are not safe"


def test_authors_rounding_can_exceed_the_budget():
    scores = torch.zeros(1, 3, 12)
    scores[0, 0, :6], scores[0, 1, :5], scores[0, 2, :1] = 9, 8, 8
    # 0.75 c + 1 for c = 6, 5, 1: halves to even, the others up.
    assert counts(AdaptiveAllocator(floor=0.25, rounding="nearest"), scores, 4) == [6, 5, 2]
    assert counts(AdaptiveAllocator(floor=0.25), scores, 4) == [5, 4, 1]


def test_a_floor_of_one_is_uniform():
    for mode in ("blend", "guarantee"):
        allocator = AdaptiveAllocator(floor=1, mode=mode)
        assert counts(allocator, scores_of(0), 13) == [13, 13, 13]


def test_equal_scores_are_shared_evenly():
    assert counts(AdaptiveAllocator(), torch.ones(1, 4, 9), 5) == [5, 5, 5, 5]


def test_normalizing_favours_heads_with_few_good_positions():
    scores = torch.tensor([[[8.0, 1.0, 0.5, 0.5], [3.0, 3.0, 3.0, 3.0]]])
    # The best two have 0.9 and 0.5 of their heads' sums: 7.2, 0.9 ... and 1.5, 1.5 ...
    assert counts(AdaptiveAllocator(floor=0, normalize=True), scores, 2) == [1, 3]
    scores[0, 0, 1] = 2.0
    assert counts(AdaptiveAllocator(floor=0), scores, 2) == [1, 3]
    assert counts(AdaptiveAllocator(floor=0, normalize=True), scores, 2) == [2, 2]


def test_heads_that_hold_fewer_get_at_most_what_they_have():
    scores = scores_of(0)
    scores[0, 1, 7:] = -torch.inf
    for mode, normalize in itertools.product(("blend", "guarantee"), (False, True)):
        allocator = AdaptiveAllocator(mode=mode, normalize=normalize)
        got = counts(allocator, scores, 30)
        assert got[1] <= 7
        assert sum(got) <= 90


def test_sequences_of_a_batch_do_not_compete():
    both = torch.cat([scores_of(0), 100 * scores_of(1)])
    layer = observation(positions=40, batch=2)
    got = AdaptiveAllocator(normalize=True).allocate(both, layer, 11).tolist()
    assert got == [counts(AdaptiveAllocator(normalize=True), row[None], 11) for row in both]


def test_the_recipe_is_snapkv_with_maxima_of_seven():
    policy = kvpolicy.recipe("adakv", budget=40)
    assert (policy.smoother.pooling, policy.smoother.width) == ("max", 7)
    kept = selected(policy, observation(positions=100, window=32))
    assert kept.lengths.sum() <= 80
    assert (kept.lengths >= 32).all()


def test_a_part_that_joins_heads_is_refused():
    class AcrossHeads:
        across_heads = True
        window = 1

        def score(self, observation, reduce):
            return observation.folded_attention(reduce)

    with pytest.raises(InvalidValueError, match="gives each head a budget of its own"):
        kvpolicy.compose(scorer=AcrossHeads(), allocator="adakv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"floor": 1.5}, r"'floor' must be in \[0, 1\], not 1.5"),
        ({"floor": -0.1}, r"'floor' must be in \[0, 1\], not -0.1"),
        ({"floor": "x"}, "'floor' must be a number, not 'x'"),
        ({"mode": "hard"}, "'mode' must be one of 'blend', 'guarantee', not 'hard'"),
        ({"normalize": 1}, "'normalize' must be True or False, not 1"),
        ({"rounding": "up"}, "'rounding' must be one of 'down', 'nearest', not 'up'"),
        ({"mode": "guarantee", "rounding": "nearest"}, "rounding='nearest' has no effect"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InvalidValueError, match=f"allocator 'adakv': {message}"):
        kvpolicy.compose(scorer="snapkv", allocator={"name": "adakv", **options})


def test_a_quarter_of_the_budget_takes_a_quarter_of_the_bytes():
    from kvpolicy.exactness.usages import tokens
    from kvpolicy.testing.models import tiny_model

    model = tiny_model("llama", num_key_value_heads=4)
    policy = kvpolicy.recipe("adakv", scorer={"name": "snapkv", "window": 8}, budget=0.25)
    with torch.no_grad(), policy.cache(model) as cache:
        model(input_ids=tokens(0, 400), past_key_values=cache)
        report = cache.report()
        lengths = torch.stack([(held >= 0).sum(-1) for held in cache.positions])

    assert (lengths.amax(-1) > lengths.amin(-1)).all(), "no layer is uneven"
    assert 0.24 * report.full_nbytes <= cache.nbytes <= 0.27 * report.full_nbytes
