import itertools

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.stages.smoothing import fold_of
from kvpolicy.testing import contract, observation
from kvpolicy.testing.models import tiny_model
from kvpolicy_defensivekv import DefensiveScorer, DefensiveSmoother, LayerDefensiveAllocator
from kvpolicy_defensivekv.window import seen
from kvpolicy_kernels import projected_norms

test_contract = contract(plugin="defensivekv")

worst_case = fold_of(DefensiveSmoother())


def layer_of(seed=0, **fields):
    return observation(positions=90, window=6, groups=3, seed=seed, **{"budget": 30} | fields)


def norms_of(layer):
    """|W_h v|_1, averaged over each group, in float64."""
    weights = layer.output_weight.double().unflatten(1, (-1, layer.values.shape[-1]))
    groups = layer.queries.shape[1] // layer.keys.shape[1]
    values = layer.values.double().repeat_interleave(groups, dim=1)
    projected = torch.einsum("mhd,bhsd->bhsm", weights, values)
    return projected.abs().sum(-1).unflatten(1, (-1, groups)).mean(2)


def risk_by_hand(layer, *, width=5, mass=0.9):
    """The method as published, for the past of one sequence: [N, P], in float64."""
    kv_heads, past = layer.keys.shape[1], layer.length - layer.window
    attention = layer.attention.double()[0, ..., :past]
    pooled = torch.nn.functional.avg_pool1d(attention, width, stride=1, padding=width // 2)
    pooled = pooled * attention.sum(-1, keepdim=True) / pooled.sum(-1, keepdim=True)
    worst = pooled.unflatten(0, (kv_heads, -1)).amax((1, 2))
    floored = torch.maximum(worst, worst.mean(-1, keepdim=True))
    norms = norms_of(layer)[0, :, :past]
    risk = floored * norms / norms.mean(0)

    mean = attention.unflatten(0, (kv_heads, -1)).mean((1, 2))
    threshold = mass - attention[..., -layer.window :].sum(-1).mean()
    highest = risk.max().item()
    for head in range(kv_heads):
        order = mean[head].argsort(descending=True)
        reached = (mean[head][order] / mean[head].sum()).cumsum(0) >= threshold
        count = min(int(reached.int().argmax()), layer.budget - layer.window)
        # Equal ones are undefined there; here the more attended come first.
        risk[head, order[:count]] = highest * torch.linspace(
            1 + 1e-6, 1 + 1e-7, count, dtype=risk.dtype
        )
    return risk


def kept_by_hand(layer, **options):
    """Which of all heads' positions are the best, `budget` for each head."""
    risk = torch.nn.functional.pad(
        risk_by_hand(layer, **options), (0, layer.window), value=torch.inf
    )
    best = risk.flatten().topk(layer.budget * len(risk)).indices
    return [
        sorted(row % layer.length for row in best.tolist() if row // layer.length == head)
        for head in range(len(risk))
    ]


def kept(layer, **options):
    policy = kvpolicy.recipe(
        "defensivekv", scorer={"name": "defensivekv", "window": 6} | options, budget=layer.budget
    )
    selection = selected(policy, layer)
    heads = zip(selection.indices[0].tolist(), selection.lengths[0].tolist(), strict=True)
    return [rows[:length] for rows, length in heads]


@pytest.mark.parametrize("width", [1, 5])
@pytest.mark.parametrize("mass", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("budget", [7, 30, 60])
def test_scores_and_kept_positions_are_the_published_formula(width, mass, budget):
    for seed, scaling in itertools.product(range(3), (0.35, 1.5)):
        layer = layer_of(seed, budget=budget, scaling=scaling)
        scorer = DefensiveScorer(window=6, width=width, mass=mass)
        scores = scorer.score(layer, worst_case)[0, ::3, :-6]
        expected = risk_by_hand(layer, width=width, mass=mass)
        torch.testing.assert_close(scores, expected.float(), rtol=2e-4, atol=0)
        assert kept(layer, width=width, mass=mass) == kept_by_hand(layer, width=width, mass=mass)


def spiked(layer, query, position):
    """The layer with one query of every head that looks nowhere but at one position."""
    queries = layer.queries.clone()
    groups = queries.shape[1] // layer.keys.shape[1]
    queries[:, :, query] = 20 * layer.keys[:, :, position].repeat_interleave(groups, dim=1)
    return attrs.evolve(layer, queries=queries)


def test_what_one_query_needs_counts_more_than_what_all_find_useful():
    rows = torch.tensor([[0.1, 0.3], [0.1, 0.0], [0.1, 0.0]])
    assert DefensiveSmoother().temporal(rows).tolist() == pytest.approx([0.1, 0.3])
    assert rows.mean(0).argmax() == 0


def test_where_the_budget_ends_among_the_first_the_most_attended_stay():
    layer = layer_of(budget=80)
    scores = DefensiveScorer(window=6, mass=1.0).score(layer, worst_case)[0, ::3, :84]
    attention = layer.attention[0, ..., :84].unflatten(0, (2, -1)).mean((1, 2))
    assert torch.equal(scores.topk(20).indices, attention.topk(20).indices)


def test_the_most_attended_come_first_whatever_their_values():
    layer = spiked(layer_of(), 2, 40)
    values = layer.values.clone()
    values[:, :, 40] = 0
    silent = attrs.evolve(layer, values=values)
    assert not any(40 in rows for rows in kept(silent, width=1, mass=0.0))
    assert all(40 in rows for rows in kept(silent, width=1, mass=0.9))


def test_sizes_do_not_count_where_heads_hold_different_positions():
    layer = layer_of()
    # The text has one token more, and each head has evicted another one.
    held = layer.positions + 1
    held[:, 1, :20] -= 1
    scorer = DefensiveScorer(window=6, mass=0.0)
    uneven = attrs.evolve(layer, positions=held, seen=layer.seen + 1)
    apart = scorer.score(uneven, worst_case)[0, ::3, :84]
    together = scorer.score(layer, worst_case)[0, ::3, :84]
    relative = (norms_of(layer) / norms_of(layer).mean(1, keepdim=True))[0, :, :84].float()
    torch.testing.assert_close(apart[:, :20] * relative[:, :20], together[:, :20])
    torch.testing.assert_close(apart[:, 20:], together[:, 20:])


def test_scores_stay_in_their_row_of_a_batch():
    both = layer_of(batch=2)
    scores = DefensiveScorer(window=6).score(both, worst_case)
    for row in range(2):
        alone = attrs.evolve(
            both,
            **{name: getattr(both, name)[row : row + 1] for name in ("queries", "keys", "values")},
            positions=both.positions[row : row + 1],
        )
        torch.testing.assert_close(
            DefensiveScorer(window=6).score(alone, worst_case), scores[row : row + 1]
        )


def test_a_prompt_that_is_all_window_has_no_scores_to_compare():
    layer = observation(positions=4, window=4)
    assert (DefensiveScorer().score(layer, worst_case) == 0).all()


def test_norms_do_not_depend_on_the_blocks():
    layer = observation(positions=700, model_dim=4096, dim=4, batch=2)
    norms = projected_norms(layer.values, layer.head_weights)
    torch.testing.assert_close(norms, norms_of(layer).float(), rtol=1e-5, atol=0)


def test_a_model_without_an_output_projection_is_refused():
    layer = layer_of(output_weight=None)
    with pytest.raises(UnsupportedModelError, match="which is not known for this model"):
        DefensiveScorer().score(layer, worst_case)


def test_the_smoother_takes_the_worst_case_of_any_scorer():
    layer = layer_of()
    past = layer.length - layer.window
    for floor in (True, False):
        smoother = {"name": "defensive", "floor": floor}
        policy = kvpolicy.compose(scorer={"name": "snapkv", "window": 6}, smoother=smoother)
        scores, expected = policy.score(layer), layer.attention.amax(2)
        if floor:
            average = expected[..., :past].mean(-1, keepdim=True)
            expected[..., :past] = expected[..., :past].maximum(average)
        torch.testing.assert_close(scores, expected)


def test_the_smoother_leaves_a_prompt_alone_that_is_all_window():
    layer = observation(positions=4, window=4)
    scores = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(DefensiveSmoother().spatial(scores, layer), scores)


def scores_of(seed, *lengths, heads=2, batch=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, heads, length, generator=generator) * (layer + 1)
        for layer, length in enumerate(lengths)
    ]


def counts(scores, budget):
    observations = [observation(positions=8)] * len(scores)
    return LayerDefensiveAllocator().allocate_layers(scores, observations, budget)


def test_every_head_of_the_model_competes():
    for seed, budget in itertools.product(range(5), (1, 7, 20)):
        scores = scores_of(seed, 20, 20, 20)
        threshold = torch.stack(scores).flatten().topk(6 * budget).values[-1]
        for layer, got in zip(scores, counts(scores, budget), strict=True):
            assert torch.equal(got, (layer >= threshold).sum(-1))


def test_layers_may_hold_different_numbers_of_positions():
    scores = scores_of(0, 5, 40, 11)
    scores[1][0, 1, 20:] = -torch.inf
    held = torch.tensor([[5, 5], [40, 20], [11, 11]])
    for budget in range(1, 45):
        got = torch.cat(counts(scores, budget))
        assert got.sum() == min(6 * budget, held.sum())
        assert (got <= held).all()


def test_sequences_do_not_compete():
    scores = scores_of(0, 20, 20, batch=2)
    both = counts(scores, 7)
    for row in range(2):
        alone = counts([each[row : row + 1] for each in scores], 7)
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, both, strict=True))


def test_a_larger_budget_takes_nothing_from_any_head():
    scores = scores_of(3, 20, 30)
    for smaller, larger in itertools.pairwise(counts(scores, budget) for budget in range(1, 31)):
        assert all((b >= a).all() for a, b in zip(smaller, larger, strict=True))


def test_equal_scores_are_shared_evenly():
    got = counts([torch.ones(1, 2, 9), torch.ones(1, 2, 9)], 5)
    assert [each.tolist() for each in got] == [[[5, 5]], [[5, 5]]]


def test_a_model_keeps_its_whole_budget_and_every_window():
    model = tiny_model("llama")
    # Attention is flat in a model that learnt nothing: the most attended would fill every budget.
    scorer = {"name": "defensivekv", "mass": 0.0}
    policy = kvpolicy.recipe("layerdefensivekv", scorer=scorer, budget=50)
    prompt = torch.randint(1, 128, (1, 120), generator=torch.Generator().manual_seed(0))
    with policy.cache(model) as cache, torch.no_grad():
        model(prompt, past_key_values=cache)
        held = torch.stack([(layer >= 0).sum(-1) for layer in cache.positions])
        recent = [(layer >= 120 - 32).sum(-1) for layer in cache.positions]
    assert held.sum() == 50 * held.numel()
    assert held.min() < held.max()
    assert all((each == 32).all() for each in recent)


def test_the_recipes_differ_in_the_allocator_alone():
    one, other = (kvpolicy.recipe(name) for name in ("defensivekv", "layerdefensivekv"))
    assert attrs.evolve(other, allocator=one.allocator) == one
    assert (one.allocator.floor, one.recent) == (0.0, 32)


@pytest.mark.parametrize(
    ("part", "name", "options", "message"),
    [
        ("scorer", "defensivekv", {"window": 0}, "'window' must be at least 1, not 0"),
        ("scorer", "defensivekv", {"width": 2}, "'width' must be odd, .* not 2"),
        ("scorer", "defensivekv", {"mass": 1.1}, r"'mass' must be in \[0, 1\], not 1.1"),
        ("smoother", "defensive", {"floor": 0.2}, "'floor' must be True or False, not 0.2"),
    ],
)
def test_mistakes_are_named(part, name, options, message):
    parts = {"scorer": "defensivekv"} | {part: {"name": name, **options}}
    with pytest.raises(InvalidValueError, match=f"{part} '{name}': {message}"):
        kvpolicy.compose(**parts)


@pytest.mark.parametrize("biased", [False, True])
def test_a_smoother_that_is_a_maximum_gives_what_any_function_of_it_gives(biased):
    layer = observation(positions=40, window=6, groups=2)
    bias = torch.randn(1, 4, 6, 40, generator=torch.Generator().manual_seed(0)) if biased else None
    layer = attrs.evolve(layer, position_bias=bias)
    found = seen(layer, fold_of(DefensiveSmoother()), 5)
    expected = seen(layer, lambda rows: rows.amax(-2), 5)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)
