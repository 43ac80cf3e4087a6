import attrs
import pytest
import torch
import torch.nn.functional as F

import kvpolicy
from kvpolicy.cache.eviction.one_layer import evicted, selected
from kvpolicy.errors import InvalidValueError
from kvpolicy.pipeline.capabilities import across_heads
from kvpolicy.stages.selection import Selection, TopKSelector
from kvpolicy.testing import contract, observation
from kvpolicy.testing.samples import normal
from kvpolicy_lookm import SimilarityMergingCompactor

test_contract = contract(plugin="lookm")

MERGES = ["pivot", "averaged", "weighted", "normalized"]


def chosen(layer, *budgets, seed=5):
    """Choose at random as many rows for each head as its budget."""
    shape = layer.keys.shape[:3]
    return TopKSelector().select(normal(seed, *shape), torch.tensor([budgets]).expand(shape[0], -1))


def compact(merge, layer, selection):
    compactor = SimilarityMergingCompactor(merge=merge)
    return compactor.compact(layer.keys, layer.values, selection, layer)


def merged_one_by_one(merge, layer, selection, row):
    """What the formulas give for one sequence, in float64, an evicted position at a time."""
    length, heads = layer.length, []
    for head, budget in enumerate(selection.lengths[row].tolist()):
        keys, values = (x[row, head].double() for x in (layer.keys, layer.values))
        kept = selection.indices[row, head, :budget].tolist()
        evicted = [i for i in range(length) if i not in kept]
        cosines = F.normalize(keys[evicted], dim=-1) @ F.normalize(keys[kept], dim=-1).T
        best = cosines.max(-1)
        heads.append((keys, values, kept, evicted, best.indices, best.values))
    of_heads = torch.stack([each[-1] for each in heads]) if merge == "weighted" else None
    results = []
    for keys, values, kept, evicted, targets, cosines in heads:
        merged = []
        for whole in (keys, values):
            rows = []
            for slot, x in enumerate(whole[kept]):
                mine = [j for j in range(len(evicted)) if targets[j] == slot]
                if merge == "weighted":
                    mine = [j for j in mine if of_heads[:, j].mean() >= of_heads.mean()]
                d = [whole[evicted[j]] for j in mine]
                s = [cosines[j] for j in mine]
                n = len(mine)
                if merge == "pivot":
                    rows.append((x + sum((each + x) / 2 for each in d)) / (1 + n))
                elif merge == "averaged":
                    rows.append((x + sum(d)) / (1 + n))
                elif merge == "weighted":
                    parts = [c * each for c, each in zip(s, d, strict=True)]
                    rows.append((x + sum(parts)) / (1 + n))
                else:
                    w = [(1 + c) / 2 for c in s]
                    parts = [c * each for c, each in zip(w, d, strict=True)]
                    rows.append((x + sum(parts)) / (1 + sum(w)))
            merged.append(torch.stack(rows))
        results.append(merged)
    return results


@pytest.mark.golden("merge_weighted")
def test_the_weighted_mean_is_that_of_kvcache_factory(case):
    layer, window = case.observation(), case.params["window_size"]
    past = case.array("selected_past_indices").long()
    recent = torch.arange(layer.length - window, layer.length).expand(1, 2, -1)
    emitted = torch.cat([past, recent], dim=-1)
    rows, order = emitted.sort(-1)
    selection = Selection(indices=rows, lengths=torch.full((1, 2), rows.shape[-1]))

    got = compact("normalized", layer, selection)

    for ours, name in zip(got, ("keys_out", "values_out"), strict=True):
        expected = case.array(name).gather(2, order[..., None].expand(-1, -1, -1, 8))
        torch.testing.assert_close(ours, expected, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("merge", MERGES)
def test_merging_follows_its_formula(merge):
    layer = observation(positions=40, batch=2)
    selection = chosen(layer, 12, 12)
    keys, values = compact(merge, layer, selection)
    for row in range(2):
        expected = merged_one_by_one(merge, layer, selection, row)
        for head, (of_keys, of_values) in enumerate(expected):
            torch.testing.assert_close(keys[row, head].double(), of_keys, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(values[row, head].double(), of_values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("merge", ["pivot", "averaged", "normalized"])
def test_heads_that_keep_unequally_many_are_merged_as_if_alone(merge):
    layer = observation(positions=40)
    selection = chosen(layer, 5, 21)
    together = compact(merge, layer, selection)
    for head, length in enumerate((5, 21)):
        alone = Selection(
            indices=selection.indices[:, head : head + 1, :length],
            lengths=selection.lengths[:, head : head + 1],
        )
        one = compact(merge, layer.head(head), alone)
        for got, expected in zip(together, one, strict=True):
            torch.testing.assert_close(got[:, head, :length], expected[:, 0])
            assert got.isfinite().all()


@pytest.mark.parametrize("merge", MERGES)
def test_a_head_may_keep_nothing_at_all(merge):
    layer = observation(positions=10)
    keys, values = compact(merge, layer, chosen(layer, 0, 4))
    assert keys.isfinite().all()
    assert values.isfinite().all()
    keys, values = compact(merge, layer, chosen(layer, 0, 0))
    assert keys.shape[2] == values.shape[2] == 0


@pytest.mark.parametrize("merge", MERGES)
def test_a_sequence_is_merged_as_if_alone(merge):
    layer = observation(positions=40, batch=3)
    selection = chosen(layer, 9, 9)
    together = compact(merge, layer, selection)
    for row in range(3):
        only = slice(row, row + 1)
        alone = attrs.evolve(
            layer,
            queries=layer.queries[only],
            keys=layer.keys[only],
            values=layer.values[only],
            positions=layer.positions[only],
        )
        picked = Selection(indices=selection.indices[only], lengths=selection.lengths[only])
        for got, expected in zip(together, compact(merge, alone, picked), strict=True):
            torch.testing.assert_close(got[only], expected)


@pytest.mark.parametrize("merge", MERGES)
def test_a_position_without_anything_merged_into_it_stays_bit_for_bit(merge):
    keys = torch.eye(8).expand(1, 2, -1, -1).clone()
    keys[..., 7, :] = keys[..., 0, :]
    values = normal(3, 1, 2, 8, 8).bfloat16()
    layer = kvpolicy.Observation(
        queries=torch.ones(1, 2, 1, 8).bfloat16(), keys=keys.bfloat16(), values=values
    )
    rows = torch.arange(7).expand(1, 2, -1)
    got_keys, got_values = compact(
        merge, layer, Selection(indices=rows, lengths=torch.full((1, 2), 7))
    )
    # Only the first shares a direction with the evicted last, and the two are alike.
    assert torch.equal(got_keys, layer.keys[:, :, :7])
    assert torch.equal(got_values[:, :, 1:], values[:, :, 1:7])
    assert not torch.equal(got_values[:, :, 0], values[:, :, 0])


def test_bfloat16_is_summed_in_float32():
    layer = observation(positions=600, dtype=torch.bfloat16)
    exact = attrs.evolve(layer, keys=layer.keys.float(), values=layer.values.float())
    selection = chosen(layer, 2, 2)
    for got, expected in zip(
        compact("averaged", layer, selection), compact("averaged", exact, selection), strict=True
    ):
        assert got.dtype == torch.bfloat16
        assert torch.equal(got, expected.bfloat16())


def test_many_positions_are_matched_in_blocks():
    layer = observation(positions=9000, heads=1)
    selection = chosen(layer, 400)
    keys, _ = compact("averaged", layer, selection)
    kept = selection.indices[0, 0]
    evicted = torch.ones(9000).bool()
    evicted[kept] = False
    whole = layer.keys[0, 0]
    cosines = F.normalize(whole[evicted], dim=-1) @ F.normalize(whole[kept], dim=-1).T
    counts = torch.bincount(cosines.argmax(-1), minlength=400) + 1
    sums = whole[kept].index_add(0, cosines.argmax(-1), whole[evicted])
    torch.testing.assert_close(keys[0, 0], sums / counts[:, None], rtol=1e-4, atol=1e-5)


def test_a_key_of_zeros_is_merged_without_nan():
    layer = observation(positions=20)
    zeros = attrs.evolve(layer, keys=torch.zeros_like(layer.keys))
    for merge in MERGES:
        for got in compact(merge, zeros, chosen(layer, 7, 7)):
            assert got.isfinite().all()


def test_only_the_weighted_merge_compares_heads():
    assert [m for m in MERGES if across_heads(SimilarityMergingCompactor(merge=m))] == ["weighted"]


def test_the_recipe_is_pivotal_merging_over_accumulated_attention():
    policy = kvpolicy.recipe("lookm", budget=0.2)
    assert policy == kvpolicy.compose(
        scorer="h2o", compactor="lookm", sinks=4, recent=0.5, every=1, budget=0.2
    )
    assert policy.compactor.merge == "pivot"
    layer = observation(positions=100, window=100)

    kept = selected(policy, layer).indices

    assert kept.shape[-1] == 20
    assert torch.equal(kept[..., :4], torch.arange(4).expand(1, 2, -1))
    assert torch.equal(kept[..., -10:], torch.arange(90, 100).expand(1, 2, -1))
    gathering = attrs.evolve(policy, compactor=kvpolicy.recipe("snapkv").compactor)
    assert not torch.equal(
        evicted(policy, layer).keys.view,
        evicted(gathering, layer).keys.view,
    )


def test_mistakes_are_named():
    with pytest.raises(
        InvalidValueError, match=r"compactor 'lookm': 'merge' must be one of 'pivot', .*'pivotal'"
    ):
        kvpolicy.compose(scorer="snapkv", compactor={"name": "lookm", "merge": "pivotal"})
