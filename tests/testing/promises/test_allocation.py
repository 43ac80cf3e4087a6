"""Each promise of an allocator catches one that breaks it."""

import sys
from pathlib import Path

import pytest
import torch

from kvpolicy.stages.allocation import UniformAllocator
from kvpolicy.testing.promises import PROMISES

sys.path.insert(0, str(Path(__file__).parent))
from faulty_parts import GenerousAllocator, promises_catch, promises_hold


class HalfAllocator(UniformAllocator):
    def allocate(self, scores, observation, budget):
        return super().allocate(scores, observation, budget) / 2


class MoodyAllocator(UniformAllocator):
    def allocate(self, scores, observation, budget):
        return super().allocate(scores, observation, budget if budget % 2 else budget // 2)


class ComparingAllocator(UniformAllocator):
    def allocate(self, scores, observation, budget):
        counts = super().allocate(scores, observation, budget)
        return counts // len(scores)


class InTurnAllocator(UniformAllocator):
    """A blameless allocator that goes layer by layer."""

    def allocate_next(self, scores, observation, budget, spare):
        length = scores.shape[-1]
        half = super().allocate(scores, observation, budget)[:, :1] // 2
        most = budget + spare[:, None] // scores.shape[1]
        counts = most.clamp_max(length) if observation.layer else half
        return counts.expand(scores.shape[:2])

    def allocate(self, scores, observation, budget):
        return self.allocate_next(scores, observation, budget, torch.zeros(len(scores)).long())


class BorrowingAllocator(InTurnAllocator):
    def allocate_next(self, scores, observation, budget, spare):
        return super().allocate_next(scores, observation, budget, spare + 4)


class ModestAllocator(InTurnAllocator):
    def allocate_next(self, scores, observation, budget, spare):
        counts = super().allocate_next(scores, observation, budget, spare)
        return counts // (1 + spare[:, None])


class ForgetfulAllocator(InTurnAllocator):
    def allocate(self, scores, observation, budget):
        return super().allocate(scores, observation, budget) // 2


class SpendingAllocator(InTurnAllocator):
    def allocate_next(self, scores, observation, budget, spare):
        counts = super().allocate_next(scores, observation, budget, spare)
        spare.zero_()
        return counts


class SortingAllocator(UniformAllocator):
    def allocate(self, scores, observation, budget):
        scores.copy_(scores.sort(-1, descending=True).values + 1)
        return super().allocate(scores, observation, budget)


test_a_promise_catches_a_part_that_breaks_it = promises_catch(
    "allocator",
    {
        "allocates_what_there_is": HalfAllocator(),
        "keeps_to_the_budget": GenerousAllocator(),
        "takes_nothing_away_when_the_budget_grows": MoodyAllocator(),
        "allocates_for_a_sequence_as_if_alone": ComparingAllocator(),
        "leaves_its_inputs_alone": SortingAllocator(),
        "keeps_at_every_layer_to_what_is_there_so_far": BorrowingAllocator(),
        "takes_nothing_away_when_more_is_left": ModestAllocator(),
        "allocates_a_layer_as_if_nothing_was_left": ForgetfulAllocator(),
    },
)
test_a_blameless_part_keeps_every_promise = promises_hold("allocator", UniformAllocator())
test_one_that_goes_layer_by_layer_keeps_every_promise = promises_hold(
    "allocator", InTurnAllocator()
)


def test_what_earlier_layers_have_left_is_no_place_to_write_to():
    (promise,) = [each for each in PROMISES["allocator"] if each.name == "leaves_its_inputs_alone"]
    with pytest.raises(AssertionError, match="input 2 was written to"):
        promise(SpendingAllocator())


def test_an_allocator_in_turn_is_shown_its_rows_alone():
    class Comparing(InTurnAllocator):
        def allocate_next(self, scores, observation, budget, spare):
            least = spare.amin().expand_as(spare)
            return super().allocate_next(scores, observation, budget, least) // len(scores)

    found = [each.name for each in PROMISES["allocator"] if not _keeps(each, Comparing())]
    assert found == ["allocates_for_a_sequence_as_if_alone"]


def _keeps(promise, part):
    try:
        promise(part)
    except AssertionError:
        return False
    return True
