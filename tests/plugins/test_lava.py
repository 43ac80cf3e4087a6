import math

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.testing import contract, observation
from kvpolicy.testing.models import tiny_model
from kvpolicy.testing.samples import normal
from kvpolicy_lava import EntropyAllocator, LargestValueScorer

test_contract = contract(plugin="lava")


def mean(values):
    return values.mean(-2)


def test_scores_are_attention_times_the_largest_value_of_the_head():
    layer = observation(positions=40, window=8, heads=2, groups=3, batch=2)
    scores = LargestValueScorer(window=8).score(layer, mean)
    for row in range(2):
        for head in range(6):
            largest = max(v.abs().sum().item() for v in layer.values[row, head // 3, :32])
            expected = layer.attention[row, head].mean(0) * largest
            torch.testing.assert_close(scores[row, head], expected)


def test_the_window_has_no_say_in_the_largest_value_but_in_a_prompt_without_a_past():
    layer = observation(positions=40, window=8)
    loud = layer.values.clone()
    loud[:, :, -1] *= 1000
    scorer = LargestValueScorer(window=8)
    loud = attrs.evolve(layer, values=loud)
    assert torch.equal(scorer.score(loud, mean), scorer.score(layer, mean))
    short = observation(positions=8, window=8)
    assert scorer.score(short, mean).isfinite().all()


def test_values_in_blocks_give_the_same_scores(monkeypatch):
    layer = observation(positions=40, window=8)
    whole = LargestValueScorer().score(layer, mean)
    monkeypatch.setattr("kvpolicy_lava.scoring.rows_per_block", lambda *_, **__: 7)
    assert torch.equal(LargestValueScorer().score(layer, mean), whole)


def entropy(scores):
    """The entropy of positive scores, divided by the logarithm of their number."""
    total = sum(scores)
    return -sum(s / total * math.log(s / total) for s in scores) / math.log(len(scores))


def test_layers_share_by_entropy_and_heads_by_scores():
    scores = [normal(layer, 1, 3, 20).mul(1 + 2 * layer).exp() for layer in range(3)]
    for each in scores:
        each[..., -4:] = torch.inf
    counts = EntropyAllocator(floor=0.2).allocate_layers(scores, [observation()] * 3, 8)
    weights = [entropy(each[..., :-4].flatten().tolist()) for each in scores]
    for each, found, weight in zip(scores, counts, weights, strict=True):
        # 3 layers of 3 heads keep 8 - 4 positions beside the protected ones.
        free = int(weight / sum(weights) * 3 * 3 * 4)
        best = each[..., :-4].flatten().topk(free).indices // 16
        own = [int((best == head).sum()) for head in range(3)]
        assert found[0].tolist() == [4 + int(0.8 * n + 0.2 * free / 3 + 1e-9) for n in own]


def test_flat_layers_get_more_than_layers_with_one_large_score():
    flat = torch.ones(1, 2, 30)
    sharp = torch.full((1, 2, 30), 1e-6)
    sharp[..., 3] = 1.0
    counts = EntropyAllocator().allocate_layers([flat, sharp], [observation()] * 2, 10)
    assert int(counts[0].sum()) > 30
    assert int(counts[1].sum()) < 10


def test_layers_share_evenly_if_no_layer_has_entropy():
    one = torch.zeros(1, 1, 9)
    one[..., 2] = 5.0
    counts = EntropyAllocator().allocate_layers([one, one], [observation()] * 2, 4)
    assert [each.tolist() for each in counts] == [[[4]], [[4]]]


@pytest.mark.parametrize("floor", [0.0, 0.2, 1.0])
def test_rows_of_a_batch_are_allocated_alone_and_within_the_budget(floor):
    allocator = EntropyAllocator(floor=floor)
    scores = [normal(layer, 2, 3, 20).exp() for layer in range(2)]
    both = allocator.allocate_layers(scores, [observation()] * 2, 6)
    assert (sum(each.sum(1) for each in both) <= 2 * 3 * 6).all()
    for row in range(2):
        alone = [each[row : row + 1] for each in scores]
        single = allocator.allocate_layers(alone, [observation()] * 2, 6)
        assert [each[row].tolist() for each in both] == [each[0].tolist() for each in single]


def test_the_recipe_takes_the_maximum_over_neighbours_and_heads():
    layer = observation(positions=60, window=32, groups=2)
    lengths = selected(kvpolicy.recipe("lava", budget=40), layer).lengths
    assert 40 * 2 - 2 <= int(lengths.sum()) <= 40 * 2


def test_layers_of_a_model_hold_different_numbers_within_the_budget():
    model = tiny_model()
    cache = kvpolicy.recipe("lava", budget=40).cache(model)
    model(torch.arange(90)[None], past_key_values=cache)
    full = kvpolicy.compose(scorer="random", recent=0, budget=40).cache(model)
    model(torch.arange(90)[None], past_key_values=full)
    assert 0.9 * full.nbytes < cache.nbytes <= full.nbytes
