import pytest
import torch

import kvpolicy
from kvpolicy.testing import contract, observation
from kvpolicy.testing.models import tiny_model
from kvpolicy.testing.samples import normal
from kvpolicy_kvcompose import CompositeAllocator

test_contract = contract(plugin="kvcompose")


def by_hand(scores, budget):
    """Take composite scores one after another, each of which costs a position in each head."""
    composites = []
    for layer, each in enumerate(scores):
        ordered = each.sort(descending=True).values
        means = ordered.mean(0).tolist()
        composites += [(mean, -rank, layer) for rank, mean in enumerate(means)]
    composites.sort(reverse=True)
    left, counts = budget * sum(len(each) for each in scores), [0] * len(scores)
    for _, _, layer in composites:
        if left < len(scores[layer]):
            break
        left -= len(scores[layer])
        counts[layer] += 1
    return counts


@pytest.mark.parametrize("budget", [1, 3, 7, 12])
def test_counts_are_those_of_the_best_composite_scores(budget):
    scores = [normal(layer, 2, 4, 12).exp() * (1 + layer) for layer in range(3)]
    counts = CompositeAllocator().allocate_layers(scores, [observation()] * 3, budget)
    for row in range(2):
        expected = by_hand([each[row] for each in scores], budget)
        assert [each[row].tolist() for each in counts] == [[count] * 4 for count in expected]


def test_layers_with_other_numbers_of_positions_keep_within_the_budget():
    scores = [normal(0, 1, 3, 20).exp(), normal(1, 1, 3, 9).exp()]
    for budget in range(1, 21):
        counts = CompositeAllocator().allocate_layers(scores, [observation()] * 2, budget)
        assert all((each == each[:, :1]).all() for each in counts)
        assert sum(int(each.sum()) for each in counts) <= budget * 6
        assert (counts[1] <= 9).all()


def test_protected_positions_come_first():
    scores = [normal(0, 1, 2, 9).exp() * 100, normal(1, 1, 2, 9).exp()]
    scores[1][..., -3:] = torch.inf
    counts = CompositeAllocator().allocate_layers(scores, [observation()] * 2, 3)
    assert int(counts[1].min()) >= 3


def test_heads_of_a_model_hold_equally_many_and_layers_do_not():
    model = tiny_model()
    cache = kvpolicy.recipe("snapkv", allocator="kvcompose", budget=40).cache(model)
    model(torch.arange(90)[None], past_key_values=cache)
    held = [positions.shape[-1] for positions in cache.positions]
    assert len(set(held)) == 2
    assert sum(held) == 80
