"""A layer must keep to its budget and to what earlier layers have left."""

from typing import ClassVar

import pytest
import torch

import kvpolicy
from kvpolicy.errors import InvalidComponentError, InvalidValueError
from kvpolicy.testing import observation
from kvpolicy.vllm.policies import check_policy


class InTurn:
    """Takes its budget, what is left, and `more`."""

    uneven: ClassVar[bool] = False

    def __init__(self, more=0):
        self.more = more

    def allocate(self, scores, observation, budget):
        return self.allocate_next(scores, observation, budget, torch.zeros(len(scores)).long())

    def allocate_next(self, scores, observation, budget, spare):
        heads = scores.shape[1]
        return (budget + self.more + spare[:, None] // heads).expand(-1, heads)


def policy(more=0):
    return kvpolicy.compose(
        scorer={"name": "snapkv", "window": 4}, allocator=InTurn(more), budget=8
    )


def test_a_layer_is_told_what_is_left():
    scores, layer = torch.zeros(2, 2, 32), observation(batch=2, budget=8)
    assert policy().allocate(scores, layer).tolist() == [[8, 8], [8, 8]]
    found = policy().allocate(scores, layer, spare=torch.tensor([0, 6]))
    assert found.tolist() == [[8, 8], [11, 11]]


def test_more_than_is_there_is_refused_by_name():
    scores, layer = torch.zeros(2, 2, 32), observation(batch=2, budget=8)
    message = r"InTurn.* returned counts that sum up to 20 for row 0; it must return at most 18: 8 "
    with pytest.raises(InvalidComponentError, match=message):
        policy(1).allocate(scores, layer, spare=torch.tensor([2, 6]))


def test_an_engine_whose_layers_share_blocks_refuses_it():
    with pytest.raises(InvalidValueError, match=r"InTurn.* gives layers different numbers"):
        check_policy(policy())
