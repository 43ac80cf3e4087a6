"""Rows that hold equally many tokens are shared out by one call, if all layers show them so."""

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.cache.attention.keys import attended
from kvpolicy.cache.eviction.budgets import budgets_of_layers
from kvpolicy.cache.eviction.ranked import ranked
from kvpolicy.cache.eviction.shown import Shown
from kvpolicy.cache.eviction.together import Together, Waiting
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.observation.logits import Logits
from kvpolicy.testing.samples import normal
from kvpolicy_defensivekv import LayerDefensiveAllocator


@attrs.frozen(kw_only=True)
class Counting(LayerDefensiveAllocator):
    """Notes how many rows it was shown each time."""

    rows: list = attrs.field(factory=list, eq=False)

    def allocate_layers(self, scores, observations, budget):
        self.rows.append(len(scores[0]))
        return super().allocate_layers(scores, observations, budget)


def group_of(policy, layer):
    contents = Contents.of(normal(layer, 3, 2, 20, 8), normal(layer + 9, 3, 2, 20, 8))
    shown = Shown(
        queries=normal(layer + 5, 3, 4, 20, 8) * 3,
        logits=Logits(scaling=0.3),
        kv_heads=2,
        layer=layer,
        num_layers=2,
    )
    (found,) = ranked(policy, contents, attended(contents), shown)
    return found


@pytest.mark.parametrize("apart", [(), (1,), (0, 1)], ids=["none", "one layer", "both"])
def test_layers_that_group_rows_differently_are_shared_out_row_by_row(apart):
    allocator, kept = Counting(), {}
    policy = kvpolicy.compose(scorer={"name": "snapkv", "window": 4}, allocator=allocator, budget=8)
    together = Together(policy, 2)
    for layer in range(2):
        group = group_of(policy, layer)
        groups = group.by_row() if layer in apart else [group]

        def keep(own, budgets, layer=layer):
            assert [len(each.scores) for each in own] == [len(each) for each in budgets]
            kept[layer] = torch.cat(list(budgets))

        together.add(layer, Waiting(groups, keep))

    assert allocator.rows == ([1, 1, 1] if apart else [3])
    assert kept[0].shape == kept[1].shape == (3, 2)
    assert (kept[0] + kept[1]).sum(1).tolist() == [32, 32, 32]
    alone = [group_of(policy, layer).by_row() for layer in range(2)]
    for row, layers in enumerate(zip(*alone, strict=True)):
        for layer, expected in enumerate(budgets_of_layers(policy, layers)):
            assert torch.equal(kept[layer][row : row + 1], expected)
