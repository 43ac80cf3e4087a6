import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import evicted
from kvpolicy.errors import InvalidValueError
from kvpolicy.stages.selection import Selection
from kvpolicy.testing import contract, observation
from kvpolicy_think import ChannelPruningCompactor

test_contract = contract(plugin="think")


def all_but_the_first(layer):
    batch, heads, length, _ = layer.keys.shape
    rows = torch.arange(1, length).expand(batch, heads, -1)
    return Selection(indices=rows, lengths=torch.full((batch, heads), length - 1))


def compact(compactor, layer, selection=None):
    selection = all_but_the_first(layer) if selection is None else selection
    return compactor.compact(layer.keys, layer.values, selection, layer)


@pytest.mark.golden("think")
def test_kept_channels_are_the_authors(case):
    params = case.params
    compactor = ChannelPruningCompactor(
        ratio=params["ratio"], recent=params["recent_size"], window=params["query_window"]
    )
    layer = case.observation()
    # One more row, to be evicted: a head that evicts nothing is left alone.
    more = attrs.evolve(
        layer,
        keys=torch.cat([torch.ones(1, 4, 1, 16), layer.keys], dim=2),
        values=torch.cat([torch.ones(1, 4, 1, 16), layer.values], dim=2),
    )

    keys, values = compact(compactor, more)

    kept = case.array("kept_channels_mask").bool()
    old = keys[:, :, :-32]
    assert torch.equal(old, layer.keys[:, :, :-32] * kept[:, :, None])
    assert torch.equal(keys[:, :, -32:], layer.keys[:, :, -32:])
    assert torch.equal(values, layer.values)


def test_channels_go_by_the_energy_of_the_group_and_of_the_kept_keys():
    layer = observation(positions=60, window=40, heads=2, groups=3, batch=2)
    keys, values = compact(ChannelPruningCompactor(ratio=0.5, recent=10), layer)
    for row in range(2):
        for head in range(2):
            queries = layer.queries[row, 3 * head : 3 * head + 3, -32:].double()
            kept = layer.keys[row, head, 1:]
            energy = queries.square().mean((0, 1)) * kept.double().square().mean(0)
            pruned = energy.argsort()[:4]
            expected = kept.clone()
            expected[:-10, pruned] = 0
            assert torch.equal(keys[row, head], expected)
    assert torch.equal(values, layer.values[:, :, 1:])


def test_only_the_newest_queries_are_asked():
    layer = observation(positions=60, window=40)
    compactor = ChannelPruningCompactor(window=3)
    asked = attrs.evolve(layer, queries=layer.queries[:, :, -3:])
    older = torch.cat([layer.queries[:, :, :-3] * 100, layer.queries[:, :, -3:]], dim=2)
    for other in (asked, attrs.evolve(layer, queries=older)):
        assert torch.equal(compact(compactor, other)[0], compact(compactor, layer)[0])
    newer = torch.cat([layer.queries[:, :, :-3], layer.queries[:, :, -3:].flip(-1)], dim=2)
    changed = compact(compactor, attrs.evolve(layer, queries=newer))[0]
    assert not torch.equal(changed, compact(compactor, layer)[0])


def test_a_head_that_evicts_nothing_loses_no_channel():
    layer = observation(positions=50)
    whole, rest = torch.arange(50), torch.arange(1, 51)
    selection = Selection(
        indices=torch.stack([whole, rest])[None], lengths=torch.tensor([[50, 49]])
    )
    keys, _ = compact(ChannelPruningCompactor(), layer, selection)
    assert torch.equal(keys[:, 0], layer.keys[:, 0])
    assert ((keys[:, 1, :17] == 0).sum(-1) == 3).all()
    assert (keys[:, 1, 17:49] != 0).all()


def test_a_second_turn_prunes_the_keys_that_were_recent_and_no_key_twice():
    compactor = ChannelPruningCompactor(recent=10)
    first = observation(positions=41, window=41)
    pruned, values = compact(compactor, first)
    more = observation(positions=20, seed=9)
    turn = attrs.evolve(
        first,
        queries=more.queries,
        keys=torch.cat([pruned, more.keys], dim=2),
        values=torch.cat([values, more.values], dim=2),
        positions=torch.arange(1, 61).expand(1, 2, -1),
        seen=61,
    )

    keys, _ = compact(compactor, turn)

    # 59 rows: 29 of the first turn that were thinned then, 20 that are old now, 10 that are recent.
    assert torch.equal(keys[:, :, :29], pruned[:, :, 1:30])
    assert ((keys[:, :, 29:49] == 0).sum(-1) == 3).all()
    assert torch.equal(keys[:, :, 49:], more.keys[:, :, 10:])


def test_keys_that_were_thinned_do_not_vote():
    compactor = ChannelPruningCompactor(recent=2)
    layer = observation(positions=30, window=30)
    zeros = torch.zeros(1, 2, 1, 8)
    zeros[..., :2] = 1000.0
    thinned = attrs.evolve(
        layer,
        keys=torch.cat(
            [layer.keys[:, :, :1], zeros.expand(-1, -1, 9, -1), layer.keys[:, :, 10:]], dim=2
        ),
    )
    alone = attrs.evolve(
        layer,
        keys=torch.cat([layer.keys[:, :, :1], layer.keys[:, :, 10:]], dim=2),
        values=layer.values[:, :, 9:],
        queries=layer.queries[:, :, 9:],
    )
    assert layer.queries.shape[2] == 30
    compactor = attrs.evolve(compactor, window=8)
    assert torch.equal(compact(compactor, thinned)[0][:, :, 9:], compact(compactor, alone)[0])


def test_without_a_ratio_keys_stay_as_they_are():
    layer = observation(positions=50)
    keys, _ = compact(ChannelPruningCompactor(ratio=0), layer)
    assert torch.equal(keys, layer.keys[:, :, 1:])


def test_bfloat16_keys_are_judged_in_float32():
    layer = observation(positions=300, dtype=torch.bfloat16)
    exact = observation(positions=300)
    exact = attrs.evolve(exact, queries=layer.queries.float(), keys=layer.keys.float())
    keys, _ = compact(ChannelPruningCompactor(), layer)
    assert keys.dtype == torch.bfloat16
    assert torch.equal(keys.float(), compact(ChannelPruningCompactor(), exact)[0])


def test_the_recipe_is_snapkv_with_thinner_keys():
    policy = kvpolicy.recipe("think", budget=60)
    smoother = {"name": "pooling", "pooling": "max", "width": 7}
    snapkv = kvpolicy.recipe("snapkv", smoother=smoother, budget=60)
    layer = observation(positions=100, window=32)

    contents = evicted(policy, layer)
    keys, values = contents.keys.view, contents.values.view

    contents = evicted(snapkv, layer)
    whole, expected = contents.keys.view, contents.values.view
    assert torch.equal(values, expected)
    assert ((keys[:, :, :28] == 0).sum(-1) == 3).all()
    assert torch.equal(keys[:, :, 28:], whole[:, :, 28:])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("ratio", 1.5, r"'ratio' must be in \[0, 1\], not 1.5"),
        ("ratio", "x", "'ratio' must be a number, not 'x'"),
        ("recent", -1, "'recent' must be at least 0, not -1"),
        ("window", 0, "'window' must be at least 1, not 0"),
        ("window", True, "'window' must be an int, not True"),
    ],
)
def test_mistakes_are_named(option, value, message):
    with pytest.raises(InvalidValueError, match=f"compactor 'think': {message}"):
        kvpolicy.compose(scorer="snapkv", compactor={"name": "think", option: value})
