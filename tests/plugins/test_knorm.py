import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidValueError
from kvpolicy.pipeline.capabilities import ModelFacts
from kvpolicy.testing import contract, observation
from kvpolicy_knorm import KeyNormScorer, SkippingAllocator

test_contract = contract(plugin="knorm")

LAYERS = 32


def honest_budget(params, length):
    """What a cache holds on average that skips layers and keeps `max_capacity_prompt` elsewhere."""
    skipped = len(params["skip_layers"])
    total = skipped * length + (LAYERS - skipped) * params["max_capacity_prompt"]
    assert total % LAYERS == 0
    return total // LAYERS


@pytest.mark.golden("l2norm")
def test_kept_positions_are_the_authors_in_layers_that_are_skipped_and_others(case):
    layer = case.observation(window=1, layer=case.params["layer_idx"], num_layers=LAYERS)
    policy = kvpolicy.recipe(
        "knorm",
        allocator={"name": "skiplayers", "layers": case.params["skip_layers"]},
        budget=honest_budget(case.params, layer.length),
    )

    kept = selected(policy, layer).indices

    assert torch.equal(kept, case.array("kept_in_emitted_order").long().sort(-1).values)


@pytest.mark.golden("l2norm")
def test_without_skipped_layers_each_keeps_the_shortest_keys(case):
    layer = case.observation(window=1)

    kept = selected(kvpolicy.recipe("knorm", budget=32), layer).indices

    shortest = layer.keys.double().norm(dim=-1).argsort(-1)[..., :32].sort(-1).values
    assert torch.equal(kept, shortest)


def test_scores_are_negative_norms_in_every_precision():
    layer = observation(positions=20, batch=2, dtype=torch.bfloat16)
    expected = -layer.keys.double().norm(dim=-1).repeat_interleave(2, 1)
    scores = KeyNormScorer().score(layer, lambda rows: rows.mean(-2))
    torch.testing.assert_close(scores.double(), expected, rtol=1e-6, atol=0)


def test_norms_beyond_half_precision_stay_finite():
    keys = torch.full((1, 1, 2, 64), 60_000.0, dtype=torch.float16)
    layer = kvpolicy.Observation(queries=keys[:, :, :1], keys=keys, values=keys)
    scores = KeyNormScorer().score(layer, lambda rows: rows.mean(-2))
    torch.testing.assert_close(scores, torch.full((1, 1, 2), -keys[0, 0, 0, 0].item() * 8))


def test_the_recipe_protects_nothing():
    keys = torch.ones(1, 2, 12, 4)
    keys[:, :, [0, 11]] = 9.0
    layer = kvpolicy.Observation(queries=keys[:, :, :1], keys=keys, values=keys)
    policy = kvpolicy.recipe("knorm", budget=10)
    assert policy.protected == 0
    assert torch.equal(selected(policy, layer).indices, torch.arange(1, 11).expand(1, 2, -1))


def counts_of(allocator, *, budget, length, layers=LAYERS):
    shown = observation(positions=length, num_layers=layers)
    return [
        allocator.allocate(
            torch.zeros(1, 2, length), attrs.evolve(shown, layer=layer), budget
        ).unique()
        for layer in range(layers)
    ]


@pytest.mark.parametrize("layers", [(0, 1), (31,), tuple(range(0, 32, 2))])
@pytest.mark.parametrize("length", [20, 100, 1000, 50_000])
def test_the_whole_budget_is_spent_and_no_more(length, layers):
    counts = counts_of(SkippingAllocator(layers=layers), budget=96, length=length)
    total = sum(map(int, counts))
    assert total <= LAYERS * 96
    assert total > LAYERS * (min(length, 96) - 1)


def test_a_prompt_that_the_others_cannot_pay_for_is_evicted_everywhere():
    allocator = SkippingAllocator(layers=[0, 1], least=0.75)
    counts = list(map(int, counts_of(allocator, budget=100, length=5000, layers=6)))
    assert counts == [150, 150, 75, 75, 75, 75]


def test_a_layer_that_stands_alone_gets_its_budget():
    assert counts_of(SkippingAllocator(layers=[0]), budget=10, length=30, layers=1) == [10]


@pytest.mark.parametrize(("layers", "least"), [((0, 1), 2), ((0, 2), 2), ((5,), 5)])
def test_layers_that_a_model_does_not_have_are_refused(layers, least):
    facts = ModelFacts(name="tiny", layers=least, heads=4, kv_heads=2, has_rotary=True)
    allocator = SkippingAllocator(layers=layers)
    with pytest.raises(InvalidValueError, match=f"must be some, but not all, of the {least}"):
        allocator.check_model(facts)
    allocator.check_model(attrs.evolve(facts, layers=max(layers) + 2))


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ("scorer", {"window": 0}, "'window' must be at least 1, not 0"),
        ("allocator", {"layers": []}, r"'layers' must be a list of different layers, .* not \(\)"),
        ("allocator", {"layers": [1, 1]}, r"'layers' must be .* not \(1, 1\)"),
        ("allocator", {"layers": [-1]}, r"'layers' must be .* not \(-1,\)"),
        ("allocator", {"layers": "01"}, "'layers' must be .* not '01'"),
        ("allocator", {"least": 0}, "'least' must be above 0"),
        ("allocator", {"least": 1.5}, r"'least' must be in \[0, 1\], not 1.5"),
    ],
)
def test_mistakes_are_named(part, options, message):
    name = {"scorer": "knorm", "allocator": "skiplayers"}[part]
    with pytest.raises(InvalidValueError, match=f"{part} '{name}': {message}"):
        kvpolicy.recipe("knorm", **{part: {"name": name, **options}})
