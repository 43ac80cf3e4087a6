"""The best positions are kept, and before them those that are protected."""

import attrs
import torch
from hypothesis import given

from kvpolicy.stages.selection import Selection, TopKSelector, protect
from kvpolicy.testing import observation, scores


def test_the_best_are_kept_in_order():
    scored = torch.tensor([[[0.1, 0.9, 0.3, 0.8]]])
    assert _select(scored, 2) == [1, 3]


def test_of_equal_positions_the_earlier_is_kept():
    assert _select(torch.tensor([[[0.0, 5.0, 5.0, 5.0]]]), 2) == [1, 2]


def test_heads_may_keep_different_numbers():
    scored = torch.arange(4.0).expand(1, 2, 4)
    selection = TopKSelector().select(scored, torch.tensor([[1, 3]]))
    assert selection.indices.tolist() == [[[3, 4, 4], [1, 2, 3]]]
    assert selection.lengths.tolist() == [[1, 3]]


@given(scores())
def test_a_budget_of_everything_keeps_everything(scored):
    budgets = torch.full(scored.shape[:2], scored.shape[-1])
    kept = TopKSelector().select(scored, budgets).indices
    assert torch.equal(kept, torch.arange(scored.shape[-1]).expand_as(scored))


def test_everything_is_every_row_of_every_head():
    selection = Selection.everything(observation(batch=2, positions=3))
    assert selection.indices.tolist() == [[[0, 1, 2]] * 2] * 2
    assert selection.lengths.tolist() == [[3, 3]] * 2


def test_the_first_and_the_last_tokens_are_protected():
    marked = protect(torch.zeros(1, 2, 6), observation(positions=6), sinks=1, recent=2)
    assert marked.isinf().tolist() == [[[True, False, False, False, True, True]] * 2]


def test_after_an_eviction_it_is_tokens_that_are_protected_not_rows():
    positions = torch.tensor([[[0, 3, 8, 9], [4, 7, 8, 9]]])
    layer = attrs.evolve(observation(positions=4, window=2), positions=positions, seen=10)
    marked = protect(torch.zeros(1, 2, 4), layer, sinks=4, recent=3)
    assert marked.isinf().tolist() == [[[True, True, True, True], [False, True, True, True]]]


def test_protection_leaves_the_scores_alone():
    given_scores = torch.zeros(1, 2, 6)
    protect(given_scores, observation(positions=6), sinks=1, recent=2)
    assert given_scores.count_nonzero() == 0


def _select(scored, budget):
    return TopKSelector().select(scored, torch.tensor([[budget]])).indices[0, 0].tolist()
