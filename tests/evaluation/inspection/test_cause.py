"""What became of needed tokens."""

from __future__ import annotations

import pytest
import torch

from kvpolicy.evaluation.inspection.cause import mean_attention, shares, verdict

HELD = [
    torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool(),
    torch.tensor([[0, 0, 0, 0], [0, 1, 0, 1]]).bool(),
]


def test_each_head_counts_as_much_as_it_attends():
    weights = [torch.tensor([4.0, 2.0]), torch.tensor([1.0, 1.0])]
    assert shares(HELD, [range(1, 3)], weights) == pytest.approx((3 / 8, 1 / 8, 4 / 8))


def test_without_attention_all_heads_count_alike():
    assert shares(HELD, [range(1, 3)], [None, None]) == pytest.approx((0.5, 0.25, 0.25))


def test_one_place_that_is_whole_is_enough():
    assert shares(HELD[:1], [range(1, 3), range(1)], [None]) == pytest.approx((0, 0, 1))


@pytest.mark.parametrize(
    ("found", "said"),
    [((0.5, 0.3, 0.2), "missing"), ((0.3, 0.4, 0.3), "broken"), ((0.1, 0.1, 0.8), "outweighed")],
)
def test_the_largest_share_decides(found, said):
    assert verdict(*found) == said


def test_attention_that_is_not_known_everywhere_is_not_known():
    assert mean_attention([torch.tensor([0.5]), torch.tensor([0.25])]) == 0.375
    assert mean_attention([torch.tensor([0.5]), None]) is None
    assert mean_attention([]) is None
