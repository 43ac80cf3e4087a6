"""Given positions are kept first, but after protected ones."""

from __future__ import annotations

import torch

from kvpolicy.evaluation.inspection.keeping import KeepingSelector
from kvpolicy.stages.selection import TopKSelector

SCORES = torch.tensor([[[5.0, 1.0, 4.0, 0.0, torch.inf]]])


def kept(budget, length=5):
    selector = KeepingSelector(selector=TopKSelector(), places=(1, 3), length=length)
    before = SCORES.clone()
    found = selector.select(SCORES, torch.tensor([[budget]]))
    assert torch.equal(SCORES, before)
    return found.indices[0, 0].tolist()


def test_they_come_before_the_best_and_behind_the_protected():
    assert [kept(budget) for budget in (1, 3, 4)] == [[4], [1, 3, 4], [0, 1, 3, 4]]


def test_a_text_of_another_length_is_not_touched():
    assert kept(2, length=6) == [0, 4]
