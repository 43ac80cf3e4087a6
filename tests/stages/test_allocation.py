"""The uniform allocator gives every head the budget, as far as there are positions."""

import pytest
import torch

from kvpolicy.stages.allocation import UniformAllocator
from kvpolicy.testing import observation


@pytest.mark.parametrize(("budget", "expected"), [(5, 5), (9, 9), (12, 9)])
def test_every_head_gets_the_budget_or_all_there_is(budget, expected):
    layer = observation(batch=2, positions=9)
    counts = UniformAllocator().allocate(torch.zeros(2, 2, 9), layer, budget)
    assert counts.tolist() == [[expected, expected]] * 2


def test_counts_that_need_no_scores_are_on_the_cpu():
    scores = torch.zeros(1, 2, 9, device="meta")
    assert UniformAllocator().allocate(scores, observation(positions=9), 4).device.type == "cpu"
