"""Each promise of a smoother catches one that breaks it."""

import sys
from pathlib import Path

from kvpolicy.stages.smoothing import MeanSmoother

sys.path.insert(0, str(Path(__file__).parent))
from faulty_parts import promises_catch, promises_hold


class SumSmoother(MeanSmoother):
    def temporal(self, values):
        return values.sum(-2)


class SmallestSmoother(MeanSmoother):
    folds_by_maximum = True

    def temporal(self, values):
        return values.amin(-2)


class NewestSmoother(MeanSmoother):
    def temporal(self, values):
        return values[..., -1, :]


class DroppingSmoother(MeanSmoother):
    def spatial(self, scores, observation):
        return scores[..., :-1]


class RisingSmoother(MeanSmoother):
    def spatial(self, scores, observation):
        return scores + 0.25


class CentringSmoother(MeanSmoother):
    def spatial(self, scores, observation):
        return scores - scores.mean(-1, keepdim=True)


class LoudestHeadSmoother(MeanSmoother):
    def spatial(self, scores, observation):
        return scores.amax(1, keepdim=True).expand_as(scores)


class ClippingSmoother(MeanSmoother):
    def spatial(self, scores, observation):
        return scores.clamp_(max=0.5)


test_a_promise_catches_a_part_that_breaks_it = promises_catch(
    "smoother",
    {
        "folds_what_agrees_to_itself": SumSmoother(),
        "folds_with_its_weights": NewestSmoother(),
        "folds_by_the_maximum_it_names": SmallestSmoother(),
        "keeps_the_shape": DroppingSmoother(),
        "keeps_constants_away_from_the_edges": RisingSmoother(),
        "keeps_what_is_not_negative": CentringSmoother(),
        "spreads_heads_of_several_processes": LoudestHeadSmoother(),
        "leaves_its_inputs_alone": ClippingSmoother(),
    },
)
test_a_blameless_part_keeps_every_promise = promises_hold("smoother", MeanSmoother())
