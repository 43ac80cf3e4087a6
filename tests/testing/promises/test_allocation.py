"""Each promise of an allocator catches one that breaks it."""

import sys
from pathlib import Path

from kvpolicy.stages.allocation import UniformAllocator

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
    },
)
test_a_blameless_part_keeps_every_promise = promises_hold("allocator", UniformAllocator())
