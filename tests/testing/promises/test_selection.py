"""Each promise of a selector catches one that breaks it."""

import sys
from pathlib import Path

from kvpolicy.stages.selection import Selection, TopKSelector

sys.path.insert(0, str(Path(__file__).parent))
from faulty_parts import WorstSelector, promises_catch, promises_hold


class UnsortedSelector(TopKSelector):
    def select(self, scores, budgets):
        return Selection(indices=super().select(scores, budgets).indices.flip(-1), lengths=budgets)


class BlindSelector(TopKSelector):
    def select(self, scores, budgets):
        return super().select(scores.masked_fill(scores.isinf(), -9), budgets)


class MiddleSelector(TopKSelector):
    def select(self, scores, budgets):
        rolled = scores.roll(2, -1)
        kept = (super().select(rolled, budgets).indices - 2) % scores.shape[-1]
        return Selection(indices=kept.sort(-1).values, lengths=budgets)


class GreedySelector(TopKSelector):
    def select(self, scores, budgets):
        return super().select(scores, budgets.add_(1))


test_a_promise_catches_a_part_that_breaks_it = promises_catch(
    "selector",
    {
        "keeps_exactly_the_budget": UnsortedSelector(),
        "keeps_what_is_protected": BlindSelector(),
        "keeps_the_best": WorstSelector(),
        "breaks_ties_to_one_side": MiddleSelector(),
        "leaves_its_inputs_alone": GreedySelector(),
    },
)
test_a_blameless_part_keeps_every_promise = promises_hold("selector", TopKSelector())
