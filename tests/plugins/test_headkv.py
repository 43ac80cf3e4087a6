import itertools

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidOptionError, InvalidValueError
from kvpolicy.testing import contract, observation
from kvpolicy.testing.models import tiny_model
from kvpolicy_headkv import HeadTableAllocator

# Six query heads are two, three or six for each key/value head; all layers matter as much.
TABLE = [[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [0, 0, 21, 0, 0, 0], [3.5] * 6]

test_contract = contract(plugin="headkv", options={"headkv": {"importance": TABLE}})


def counts(allocator, budget, *, heads, held=10_000):
    """What the allocator gives to every head of every layer."""
    layers = len(allocator.importance)
    scores, shown = torch.zeros(1, heads, held), observation(num_layers=layers)
    return torch.cat(
        [
            allocator.allocate(scores, attrs.evolve(shown, layer=layer), budget)
            for layer in range(layers)
        ]
    )


@pytest.mark.golden("headkv")
def test_counts_and_kept_scores_are_the_authors(case):
    params = case.params
    window, budget = params["window_size"], params["max_capacity_prompt"]
    layer, capacities = params["layer_idx"], params["head_capacity"]
    base = budget - window
    assert sum(capacities[layer]) == base * len(capacities[layer])
    # With a pool of everything, importances of base on average are the counts themselves.
    table = [[base] * 4 if row != layer else capacities[layer] for row in range(2)]
    policy = kvpolicy.compose(
        scorer={"name": "snapkv", "window": window},
        smoother={"name": "pooling", "pooling": "max", "width": params["kernel_size"]},
        allocator={"name": "headkv", "importance": table, "beta": 1, "window": window},
        budget=budget,
    )
    shown = case.observation(window=window, budget=budget, layer=layer, num_layers=2)

    scores = policy.rank(shown)
    selection = selected(policy, shown)

    past = scores[..., : shown.length - window]
    torch.testing.assert_close(past, case.array("head_scores"), rtol=2e-4, atol=0)
    lengths = case.array("head_lens").tolist()
    assert selection.lengths.tolist() == [lengths]
    # Neighbours share a score at every cut: which of them is kept is undefined in their code.
    for head, expected in enumerate(case.array("kept_flat").long().split(lengths)):
        got = selection.indices[0, head, : lengths[head]]
        kept = (scores[0, head, rows].sort().values for rows in (got, expected))
        torch.testing.assert_close(*kept, rtol=2e-4, atol=0)


@pytest.mark.parametrize(("beta", "temp"), [(1.005, 1.0), (1.01, 1.0), (2.0, 0.5), (10.0, 3.0)])
def test_the_nearest_counts_are_the_authors_formula(beta, temp):
    allocator = HeadTableAllocator(
        importance=TABLE, beta=beta, temp=temp, window=8, rounding="nearest"
    )
    for budget in (40, 128, 333):
        base = budget - 8
        share = torch.tensor(TABLE, dtype=torch.float64)
        share = (share / share.sum()) ** temp
        share = share / share.sum()
        expected = (share * (base // beta * share.numel()) + (base - base // beta)).round() + 8
        assert torch.equal(counts(allocator, budget, heads=6), expected.long())


def test_a_group_has_the_average_of_its_query_heads():
    allocator = HeadTableAllocator(importance=[[0, 2, 3, 3], [4, 0, 0, 4]], beta=1, window=0)
    assert counts(allocator, 10, heads=4).tolist() == [[0, 10, 15, 15], [20, 0, 0, 20]]
    assert counts(allocator, 10, heads=2).tolist() == [[5, 15], [10, 10]]
    assert counts(allocator, 10, heads=1).tolist() == [[10], [10]]


@pytest.mark.parametrize("beta", [1, 1.01, 3])
def test_the_budget_is_spent_but_for_a_fraction_per_head(beta):
    allocator = HeadTableAllocator(importance=TABLE, beta=beta, temp=0.7, window=8)
    for budget, heads in itertools.product(range(1, 80), (2, 3, 6)):
        got = counts(allocator, budget, heads=heads)
        assert 0 <= budget * got.numel() - got.sum() < got.numel()
        assert got.min() >= min(8, budget)


def test_a_larger_beta_is_closer_to_uniform():
    spread = [
        counts(HeadTableAllocator(importance=TABLE, beta=beta), 500, heads=6).double().std()
        for beta in (1, 2, 10, 1000)
    ]
    assert spread == sorted(spread, reverse=True)
    assert spread[-1] == 0


def test_a_head_has_no_more_than_it_holds():
    allocator = HeadTableAllocator(importance=[[0, 9]], window=4)
    assert counts(allocator, 30, heads=2, held=40).tolist() == [[5, 40]]


def test_importances_may_be_of_any_size():
    tiny, huge = ([[1 * unit, 3 * unit]] for unit in (1e-300, 1e300))
    for table in (tiny, huge):
        allocator = HeadTableAllocator(importance=table, beta=1, temp=2, window=0)
        assert counts(allocator, 10, heads=2).tolist() == [[2, 18]]


def test_a_table_that_fits_the_model_serves_it():
    model = tiny_model("llama")
    config = model.config
    for heads in (config.num_attention_heads, config.num_key_value_heads):
        table = [[1.0] * heads] * config.num_hidden_layers
        policy = kvpolicy.compose(
            scorer="snapkv", allocator={"name": "headkv", "importance": table}
        )
        with policy.cache(model):
            pass


@pytest.mark.parametrize(("layers", "heads"), [(1, 4), (9, 4), (2, 3), (2, 8)])
def test_a_table_of_another_shape_is_refused(layers, heads):
    model = tiny_model("llama")
    table = [[1.0] * heads] * layers
    policy = kvpolicy.compose(scorer="snapkv", allocator={"name": "headkv", "importance": table})
    with pytest.raises(InvalidValueError, match=f"a table of {layers} layers x {heads} heads, but"):
        policy.cache(model)


def test_a_layer_that_the_table_has_not_is_refused():
    allocator = HeadTableAllocator(importance=[[1, 2, 3]])
    with pytest.raises(InvalidValueError, match="does not fit layer 0 with 2 key/value heads"):
        counts(allocator, 10, heads=2)
    shown = observation(layer=1, num_layers=2)
    with pytest.raises(InvalidValueError, match="does not fit layer 1 with 3 key/value heads"):
        allocator.allocate(torch.zeros(1, 3, 8), shown, 4)


def test_without_a_table_there_is_no_allocator():
    with pytest.raises(InvalidOptionError, match=r"allocator 'headkv' needs .* 'importance'"):
        kvpolicy.compose(scorer="snapkv", allocator="headkv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"importance": []}, r"'importance' must be a list of rows .*, not \(\)"),
        (
            {"importance": [1, 2]},
            r"numbers, one row for each layer, not \[1, 2\]",
        ),
        ({"importance": "heads.json"}, "not 'heads.json'"),
        ({"importance": [[1, 2], [3]]}, r"all of one length; these rows have lengths \[1, 2\]"),
        ({"importance": [[], []]}, r"these rows have lengths \[0\]"),
        ({"importance": [[1, -2]]}, "but layer 0 has -2.0 for head 1"),
        ({"importance": [[1], [float("nan")]]}, "but layer 1 has nan for head 0"),
        ({"importance": [[True]]}, "but layer 0 has True for head 0"),
        ({"importance": [["1"]]}, "but layer 0 has '1' for head 0"),
        ({"importance": [[0, 0]]}, "some numbers must be above 0, but all are 0"),
        ({"beta": 0.5}, "'beta' must be at least 1, not 0.5"),
        ({"temp": 0}, "'temp' must be above 0 and finite, not 0.0"),
        ({"window": -1}, "'window' must be at least 0, not -1"),
        ({"rounding": "up"}, "'rounding' must be one of 'down', 'nearest', not 'up'"),
    ],
)
def test_mistakes_are_named(options, message):
    allocator = {"name": "headkv", "importance": [[1.0]], **options}
    with pytest.raises(InvalidValueError, match=f"allocator 'headkv': .*{message}"):
        kvpolicy.compose(scorer="snapkv", allocator=allocator)
