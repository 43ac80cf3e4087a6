import itertools
import json
from pathlib import Path

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidValueError
from kvpolicy.testing import contract, observation
from kvpolicy_pyramidkv import PyramidAllocator

test_contract = contract(plugin="pyramidkv")

INDEX = json.loads((Path(__file__).parent / "golden" / "cases.json").read_text())
RESTKV = [case for case in INDEX["cases"] if case["params"].get("use_pyramid")]


def counts(allocator, budget, *, seen, layers, held=None):
    """What the allocator gives each layer, all of which hold `held` positions."""
    shown = observation(positions=8, num_layers=layers, seen=seen)
    scores = torch.zeros(1, 1, held or seen)
    return [
        int(allocator.allocate(scores, attrs.evolve(shown, layer=layer), budget))
        for layer in range(layers)
    ]


def reference(params):
    return PyramidAllocator(
        window=params["window_size"],
        beta=params.get("beta", 20),
        schedule="reference",
        short="uniform",
    )


def policy_of(case):
    params = case.params
    pooling = {"avgpool": "avg", "maxpool": "max"}[params["pooling"]]
    return kvpolicy.compose(
        scorer={"name": "snapkv", "window": params["window_size"]},
        smoother={"name": "pooling", "pooling": pooling, "width": params["kernel_size"]},
        allocator=reference(params),
        budget=params["max_capacity_prompt"],
    )


def observation_of(case):
    params = case.params
    return case.observation(
        window=params["window_size"],
        layer=params["layer_idx"],
        num_layers=params["num_hidden_layers"],
        budget=params["max_capacity_prompt"],
    )


@pytest.mark.golden("pyramidkv")
def test_scores_and_kept_positions_are_the_authors(case):
    policy, layer = policy_of(case), observation_of(case)

    selection = selected(policy, layer)

    summed = policy.score(layer)[..., : layer.length - layer.window] * layer.window
    torch.testing.assert_close(summed, case.array("scores_before_topk"), rtol=2e-4, atol=0)
    expected = case.array("kept_in_emitted_order").long().sort(-1).values
    assert torch.equal(selection.indices, expected)
    assert expected.shape[-1] == case.fields["n_selected_from_past"] + layer.window


@pytest.mark.golden("pyramidkv_gqa")
def test_scores_that_a_grouped_cache_keeps_are_the_authors(case):
    """Their code averages the group before it pools, so its scores are what is ranked here."""
    policy, layer = policy_of(case), observation_of(case)
    theirs = case.array("scores_before_topk")
    scores = torch.nn.functional.pad(theirs, (0, layer.window), value=torch.inf)

    selection = policy.choose(scores, policy.allocate(scores, layer))

    kept = case.array("kept_in_emitted_order").long()
    assert case.fields["exact_ties_at_cut"], "compare positions, not only scores"
    got, expected = (scores.gather(-1, rows).sort(-1).values for rows in (selection.indices, kept))
    assert torch.equal(got, expected)


@pytest.mark.parametrize("case", RESTKV, ids=[case["id"] for case in RESTKV])
def test_the_pyramid_of_restkv_is_the_reference_without_its_exception(case):
    params = case["params"]
    allocator = attrs.evolve(reference(params), short="pyramid")
    length = INDEX["inputs"][case["input"]]["L"]

    got = counts(
        allocator, params["max_capacity_prompt"], seen=length, layers=params["num_hidden_layers"]
    )

    expected = case["n_selected_from_past"] + params["window_size"]
    assert got[params["layer_idx"]] == expected


@pytest.mark.parametrize("layers", [1, 2, 3, 8, 17])
@pytest.mark.parametrize("seen", [41, 60, 301])
@pytest.mark.parametrize("beta", [1, 3, 20])
def test_the_exact_pyramid_falls_and_spends_the_whole_budget(layers, seen, beta):
    allocator = PyramidAllocator(window=8, beta=beta)
    for budget in range(1, seen + 1, 7):
        got = counts(allocator, budget, seen=seen, layers=layers)
        assert sum(got) == layers * budget
        assert got == sorted(got, reverse=True)
        assert got[-1] >= min(budget, 8)


@pytest.mark.parametrize("layers", [1, 2, 5, 8])
def test_a_larger_budget_takes_nothing_from_any_layer(layers):
    allocator, seen = PyramidAllocator(window=8), 60
    pyramids = [counts(allocator, budget, seen=seen, layers=layers) for budget in range(1, 70)]
    for smaller, larger in itertools.pairwise(pyramids):
        assert all(a <= b for a, b in zip(smaller, larger, strict=True))


def test_the_last_layer_has_a_betath_of_the_average():
    got = counts(PyramidAllocator(window=0, beta=10), 100, seen=10_000, layers=9)
    assert (got[0], got[4], got[-1]) == (190, 100, 10)


@pytest.mark.parametrize(
    "exceeds",
    [
        (64, 0, 0),
        (96, 0.151, 0.227),
        (128, 0.113, 0.151),
        (256, 0.045, 0.051),
        (512, 0.013, 0.014),
        (1024, 0.013, 0.013),
        (2048, 0.005, 0.005),
    ],
)
def test_the_reference_exceeds_the_budget_by_what_the_readme_says(exceeds):
    budget, whole, past = exceeds
    got = counts(PyramidAllocator(schedule="reference"), budget, seen=100_000, layers=32)
    excess = sum(got) - 32 * budget
    assert excess / (32 * budget) == pytest.approx(whole, abs=5e-4)
    assert excess / (32 * (budget - 32)) == pytest.approx(past, abs=5e-4)


@pytest.mark.parametrize("schedule", ["exact", "reference"])
def test_one_layer_has_the_whole_budget(schedule):
    assert counts(PyramidAllocator(schedule=schedule), 100, seen=1000, layers=1) == [100]


def test_a_short_prompt_is_uniform_on_demand():
    allocator = PyramidAllocator(window=10, short="uniform")
    assert counts(allocator, 110, seen=199, layers=3) == [110, 110, 110]
    # The first of 200 tokens' layers would hold 210 positions, were there so many.
    assert counts(allocator, 110, seen=200, layers=3) == [200, 110, 20]


def test_a_layer_that_holds_fewer_than_its_term_keeps_all_it_has():
    got = counts(PyramidAllocator(window=8), 100, seen=1000, layers=3, held=120)
    assert got == [120, 100, 12]


def test_later_turns_are_measured_by_what_was_seen():
    held = torch.arange(940, 1000).expand(1, 2, -1)
    layer = observation(positions=60, window=4, layer=2, num_layers=3, seen=1000)
    layer = attrs.evolve(layer, positions=held)
    scorer, allocator = ({"name": name, "window": 8} for name in ("snapkv", "pyramidkv"))
    policy = kvpolicy.recipe("pyramidkv", scorer=scorer, allocator=allocator, budget=50)
    got = selected(policy, layer)
    # base = 42: the last layer keeps 42 // 20 and the window, although fewer queries are shown.
    assert got.lengths.tolist() == [[10, 10]]
    assert torch.equal(got.indices[..., -8:], torch.arange(52, 60).expand(1, 2, -1))


def test_the_recipe_is_snapkv_in_a_pyramid():
    assert kvpolicy.recipe("pyramidkv", budget=40) == kvpolicy.compose(
        scorer="snapkv", smoother="pooling", allocator="pyramidkv", budget=40
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0}, "'beta' must be at least 1, not 0"),
        ({"beta": 1.5}, "'beta' must be an int, not 1.5"),
        ({"window": -1}, "'window' must be at least 0, not -1"),
        ({"schedule": "linear"}, "'schedule' must be one of 'exact', 'reference', not 'linear'"),
        ({"short": "flat"}, "'short' must be one of 'pyramid', 'uniform', not 'flat'"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InvalidValueError, match=f"allocator 'pyramidkv': {message}"):
        kvpolicy.compose(scorer="snapkv", allocator={"name": "pyramidkv", **options})
