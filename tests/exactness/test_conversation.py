"""A conversation is measured after whatever was done to its cache."""

import pytest
import torch

from kvpolicy.exactness.conversation import Conversation
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import small_policy, tokens
from kvpolicy.testing.models import tiny_model


@pytest.fixture
def conversation():
    begun = Conversation.begun(tiny_model("llama"), small_policy("snapkv"))
    mask = torch.ones(2, 60, dtype=torch.long)
    mask[1, :10] = 0
    begun.read(tokens(0, batch=2) * mask, mask)
    return begun


def test_a_padded_batch_that_is_reordered_repeated_and_copied_is_exact(conversation):
    assert (conversation.rows, conversation.length, conversation.has_evicted) == (2, 60, True)
    conversation.reorder(torch.tensor([1, 0]))
    conversation.repeat(2)
    assert conversation.mask.sum(1).tolist() == [50, 50, 60, 60]
    copy = conversation.twin()
    conversation.select(torch.tensor([2, 0]))
    for each in (conversation, copy, conversation.reloaded()):
        each.read(tokens(1, 3, batch=each.rows))
        assert len(each.forwards) == 2
        assert each.difference() <= LIMIT


def test_a_refused_crop_leaves_everything_as_it_was(conversation):
    assert not conversation.crop(55)
    assert conversation.length == 60
    conversation.read(tokens(1, 1, batch=2))
    assert conversation.difference() <= LIMIT


def test_a_crop_is_replayed_too(conversation):
    conversation.read(tokens(1, 1, batch=2))
    assert conversation.crop(1)
    conversation.read(tokens(2, 1, batch=2))
    assert conversation.length == 61
    assert conversation.difference() <= LIMIT


def test_a_wrong_position_is_measured(conversation):
    conversation.read(tokens(1, 1, batch=2))
    conversation.forwards[1].positions[0][0, 0, 3] += 1
    assert conversation.difference() > 10 * LIMIT


def test_after_a_reset_there_is_nothing_to_measure(conversation):
    conversation.reset()
    assert (conversation.rows, conversation.length, conversation.difference()) == (0, 0, 0.0)
