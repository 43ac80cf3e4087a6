import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import evicted, selected
from kvpolicy.errors import InvalidValueError
from kvpolicy.stages.selection import Selection, TopKSelector
from kvpolicy.testing import contract, observation
from kvpolicy.testing.samples import normal
from kvpolicy_cam import CacheMergingCompactor
from kvpolicy_cam.merging import window_attention
from kvpolicy_kernels import heirs

test_contract = contract(plugin="cam")


@attrs.frozen(kw_only=True)
class UnevenAllocator:
    """Gives later heads more."""

    uneven = True

    def allocate(self, scores, observation, budget):
        batch, heads, length = scores.shape
        return (
            torch.arange(budget - heads + 1, budget + heads, 2).clamp(0, length).expand(batch, -1)
        )


def chosen(layer, *budgets, seed=5):
    """Choose the last row and, at random, as many more for each head as its budget says."""
    scores = normal(seed, *layer.keys.shape[:3])
    scores[..., -1] = torch.inf
    budgets = torch.tensor([budgets]).expand(len(scores), -1)
    return TopKSelector().select(scores, budgets)


def compact(layer, selection, **options):
    compactor = CacheMergingCompactor(**options)
    return compactor.compact(layer.keys, layer.values, selection, layer)


def heirs_of(kept, evicted, neighbours):
    return [j for j in kept if j > evicted][:neighbours]


def walk(layer, selection, neighbours):
    """Every evicted position with its heirs and its probability by the formula, in float64."""
    attention = layer.attention.double().mean(2)
    groups = layer.queries.shape[1] // layer.keys.shape[1]
    for row in range(len(layer.keys)):
        for head, budget in enumerate(selection.lengths[row].tolist()):
            a = attention[row, head * groups : (head + 1) * groups].mean(0)
            kept = selection.indices[row, head, :budget].tolist()
            for i in sorted(set(range(layer.length)) - set(kept)):
                heirs = heirs_of(kept, i, neighbours)
                chance = float((a[i] / a[heirs].mean()).clamp(max=1)) if heirs else 0.0
                yield row, head, i, kept, heirs, chance


@pytest.mark.parametrize("neighbours", [1, 3, 100])
def test_probabilities_are_attention_against_the_mean_of_the_heirs(neighbours):
    layer = observation(positions=30, batch=2)
    selection = chosen(layer, 7, 12)
    evicted = selection.evicted(30)
    # By draws below each threshold: how many of them merge a position.
    draws = torch.linspace(0, 1, 257)[:-1] + 1 / 512
    merges = [
        heirs(
            window_attention(layer),
            layer.keys.new_full(layer.keys.shape[:3], draw),
            selection.indices,
            evicted,
            neighbours,
        ).shares
        > 0
        for draw in draws.tolist()
    ]

    expected = torch.zeros(2, 2, evicted.shape[-1], dtype=torch.float64)
    for row, head, i, _, _, chance in walk(layer, selection, neighbours):
        expected[row, head, evicted[row, head].tolist().index(i)] = chance
    torch.testing.assert_close(torch.stack(merges).double().mean(0), expected, rtol=0, atol=1 / 500)


@pytest.mark.parametrize("neighbours", [1, 3, 100])
def test_a_position_that_is_sure_to_be_merged_is_shared_among_its_heirs(neighbours):
    layer = observation(positions=30, batch=2)
    # Without attention to tell them apart, an evicted position counts as much as its heirs.
    layer = attrs.evolve(layer, queries=torch.zeros_like(layer.queries[:, :, -1:]))
    selection = chosen(layer, 7, 12)

    keys, values = compact(layer, selection, neighbours=neighbours)

    expected = layer.values.double().clone()
    for row, head, i, _, mine, chance in walk(layer, selection, neighbours):
        assert chance == 1
        for j in mine:
            expected[row, head, j] += layer.values[row, head, i].double() / len(mine)
    for head, length in enumerate((7, 12)):
        rows = selection.indices[:, head, :length, None].expand(-1, -1, 8)
        of_head = values[:, head, :length].double()
        torch.testing.assert_close(of_head, expected[:, head].gather(1, rows), rtol=1e-5, atol=1e-5)
        assert torch.equal(keys[:, head, :length], layer.keys[:, head].gather(1, rows))


def test_a_position_without_attention_is_never_merged():
    layer = observation(positions=6)
    keys = torch.zeros_like(layer.keys)
    keys[:, :, :2, 0] = -1e4
    layer = attrs.evolve(layer, keys=keys, queries=torch.ones_like(layer.queries[:, :, -1:]))
    rows = torch.arange(2, 6).expand(1, 2, -1)
    selection = Selection(indices=rows, lengths=torch.full((1, 2), 4))
    for seed in range(5):
        assert torch.equal(compact(layer, selection, seed=seed)[1], layer.values[:, :, 2:])


DRAWS = 500


def test_on_average_a_head_pays_to_the_heirs_what_it_paid_to_the_evicted():
    # One query, and evicted positions that get less attention than their heirs: no chance is cut.
    layer = observation(positions=9, groups=1, window=1)
    keys = torch.zeros_like(layer.keys)
    keys[:, :, :5, 0] = -torch.linspace(1, 4, 5)
    layer = attrs.evolve(layer, keys=keys, queries=torch.ones_like(layer.queries))
    selection = Selection(
        indices=torch.arange(5, 9).expand(1, 2, -1), lengths=torch.full((1, 2), 4)
    )
    attention = layer.attention[:, :, 0]
    full = (attention[..., None] * layer.values).sum(2)

    outputs = torch.stack(
        [
            (attention[..., 5:, None] * compact(layer, selection, seed=seed)[1]).sum(2)
            for seed in range(DRAWS)
        ]
    )

    spread = outputs.std(0) / DRAWS**0.5
    assert (spread > 0).all()
    assert ((outputs.mean(0) - full).abs() < 5 * spread).all()


def test_draws_depend_on_seed_layer_and_tokens_seen_and_on_nothing_else():
    layer = observation(positions=60, num_layers=2)
    selection = chosen(layer, 20, 20)
    values = compact(layer, selection)[1]
    torch.manual_seed(1)
    assert torch.equal(compact(layer, selection)[1], values)
    assert not torch.equal(compact(layer, selection, seed=1)[1], values)
    assert not torch.equal(compact(layer, selection, seed=2**32)[1], values)
    for changes in ({"layer": 1}, {"seen": 61}):
        other = attrs.evolve(layer, positions=layer.positions, **changes)
        assert not torch.equal(compact(other, selection)[1], values)


def test_sequences_of_a_batch_get_the_same_draws():
    layer = observation(positions=40)
    twice = attrs.evolve(
        layer,
        **{
            name: getattr(layer, name).expand(2, -1, -1, -1)
            for name in ("queries", "keys", "values")
        },
        positions=layer.positions.expand(2, -1, -1),
    )
    selection = chosen(layer, 10, 10)
    both = Selection(
        indices=selection.indices.expand(2, -1, -1), lengths=selection.lengths.expand(2, -1)
    )
    alone, together = compact(layer, selection)[1], compact(twice, both)[1]
    assert torch.equal(together[:1], alone)
    assert torch.equal(together[1:], alone)


def test_a_head_is_merged_alone_as_with_the_others():
    layer = observation(positions=40, heads=3)
    selection = chosen(layer, 5, 11, 20)
    together = compact(layer, selection)
    for head, length in enumerate((5, 11, 20)):
        alone = Selection(
            indices=selection.indices[:, head : head + 1, :length],
            lengths=selection.lengths[:, head : head + 1],
        )
        for got, expected in zip(together, compact(layer.head(head), alone), strict=True):
            torch.testing.assert_close(got[:, head, :length], expected[:, 0])
            assert got.isfinite().all()


def test_positions_after_the_last_that_is_kept_are_dropped():
    layer = observation(positions=10)
    layer = attrs.evolve(layer, queries=torch.zeros_like(layer.queries))
    rows = torch.arange(4).expand(1, 2, -1)
    values = compact(layer, Selection(indices=rows, lengths=torch.full((1, 2), 4)))[1]
    assert torch.equal(values, layer.values[:, :, :4])


def test_a_head_may_keep_nothing_at_all():
    layer = observation(positions=10)
    for budgets in ((0, 4), (0, 0)):
        keys, values = compact(layer, chosen(layer, *budgets))
        assert keys.shape[2] == values.shape[2] == max(budgets)
        assert values.isfinite().all()


def test_bfloat16_is_summed_in_float32():
    layer = observation(positions=300, dtype=torch.bfloat16)
    exact = attrs.evolve(layer, values=layer.values.float())
    selection = chosen(layer, 4, 4)
    got, expected = compact(layer, selection)[1], compact(exact, selection)[1]
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, expected.bfloat16())


def test_it_goes_with_any_scorer_and_with_uneven_heads():
    policy = kvpolicy.compose(
        scorer="snapkv", allocator=UnevenAllocator(), compactor="cam", budget=40
    )
    layer = observation(positions=100, window=32)
    selection = selected(policy, layer)
    assert selection.lengths.tolist() == [[39, 41]]
    contents = evicted(policy, layer)
    keys, values = contents.joined("keys"), contents.joined("values")
    for head in range(2):
        assert torch.equal(keys[:, head, -32:], layer.keys[:, head, -32:])
        assert not torch.equal(values[:, head, -32:], layer.values[:, head, -32:])


def test_the_recipe_merges_into_recent_positions_at_every_step():
    policy = kvpolicy.recipe("cam", budget=40)
    assert policy == kvpolicy.compose(
        scorer="streamingllm", compactor="cam", sinks=4, every=1, budget=40
    )
    assert (policy.compactor.neighbours, policy.compactor.seed) == (32, 0)
    # A full cache and one decoded token: position 4 goes, and only its heirs may change.
    layer = observation(positions=41, window=1)
    layer = attrs.evolve(layer, queries=torch.zeros_like(layer.queries))

    contents = evicted(policy, layer)
    keys, values = contents.keys.view, contents.values.view

    assert torch.equal(keys, torch.cat([layer.keys[:, :, :4], layer.keys[:, :, 5:]], dim=2))
    share = layer.values[:, :, 4:5] / 32
    assert torch.equal(values[:, :, :4], layer.values[:, :, :4])
    torch.testing.assert_close(values[:, :, 4:36], layer.values[:, :, 5:37] + share)
    assert torch.equal(values[:, :, 36:], layer.values[:, :, 37:])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("neighbours", 0, "'neighbours' must be at least 1, not 0"),
        ("neighbours", 2.5, "'neighbours' must be an int, not 2.5"),
        ("seed", -1, "'seed' must be at least 0, not -1"),
        ("seed", True, "'seed' must be an int, not True"),
    ],
)
def test_mistakes_are_named(option, value, message):
    with pytest.raises(InvalidValueError, match=f"compactor 'cam': {message}"):
        kvpolicy.compose(scorer="snapkv", compactor={"name": "cam", option: value})
