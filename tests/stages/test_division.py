"""A budget is divided among spans by largest remainder; scores decide within each."""

import torch

from kvpolicy.stages.division import FairDivider, divided, quotas


def shared(free, parts, held):
    found = quotas(torch.tensor([[free]]), torch.tensor(parts).double(), torch.tensor([[held]]))
    return found[0, 0].tolist()


def test_a_fair_part_is_the_length_of_a_span():
    assert FairDivider().divide({"": 30, "rules": 10}) == {"": 30, "rules": 10}


def test_shares_are_rounded_by_largest_remainder():
    assert shared(10, [1, 1, 1], [9, 9, 9]) == [4, 3, 3]
    assert shared(7, [100, 20, 20], [99, 99, 99]) == [5, 1, 1]


def test_what_a_span_cannot_hold_goes_to_the_others_in_their_proportion():
    assert shared(10, [1, 1, 3], [9, 0, 9]) == [3, 0, 7]
    assert shared(10, [100, 1, 3], [2, 9, 9]) == [2, 2, 6]


def test_a_span_of_part_zero_gets_what_no_other_can_hold():
    assert shared(5, [0, 1], [9, 3]) == [2, 3]
    assert shared(4, [0, 0], [9, 9]) == [2, 2]


def test_a_head_that_keeps_all_keeps_all_of_each_span():
    assert shared(12, [1, 5, 1], [3, 2, 7]) == [3, 2, 7]


def test_scores_decide_within_a_span_and_protected_positions_come_first():
    inf = torch.inf
    scores = torch.tensor([[[9.0, 8.0, 7.0, inf, 1.0, 2.0, 2.0, -inf]]])
    spans = torch.tensor([[[0, 0, 0, 0, 1, 1, 1, 0]]])
    found = divided(scores, spans, torch.tensor([[3]]), torch.tensor([3.0, 3.0]).double())
    assert found.tolist() == [[[9.0, -inf, -inf, inf, -inf, 2.0, -inf, -inf]]]


def test_each_head_divides_its_own_count():
    scores = torch.arange(12.0).expand(1, 2, -1)
    spans = (torch.arange(12) >= 8).long().expand(1, 2, -1)
    found = divided(scores, spans, torch.tensor([[3, 6]]), torch.tensor([8.0, 4.0]).double())
    kept = found.isfinite()[0]
    assert [each.nonzero().flatten().tolist() for each in kept] == [
        [6, 7, 11],
        [4, 5, 6, 7, 10, 11],
    ]
