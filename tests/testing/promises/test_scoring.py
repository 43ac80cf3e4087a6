"""Each promise of a scorer catches one that breaks it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import torch
from faulty_parts import Counts, Scorer, promises_catch, promises_hold


class NoWindow(Scorer):
    window = 0


class OneShort(Scorer):
    def score(self, observation, reduce):
        return super().score(observation, reduce)[..., 1:]


class OwnPrecision(Scorer):
    def score(self, observation, reduce):
        return super().score(observation, reduce).to(observation.keys.dtype)


class NeedsWeights(Scorer):
    def score(self, observation, reduce):
        return observation.attention.mT @ reduce.weights(observation.window)


class ScalesQueries(Scorer):
    def score(self, observation, reduce):
        observation.queries.mul_(2)
        return super().score(observation, reduce)


class ComparesSequences(Scorer):
    def score(self, observation, reduce):
        scores = super().score(observation, reduce)
        return scores - scores.amax((0, 1), keepdim=True)


class ComparesHeads(Scorer):
    def score(self, observation, reduce):
        scores = super().score(observation, reduce)
        return scores - scores.amax((1, 2), keepdim=True)


class Forgetful(Scorer):
    def accumulate(self, observation):
        return observation.attention.sum(2)


class NotesTooMuch(Scorer):
    def accumulate(self, observation):
        return self.accumulate_noted(observation)[0]

    def accumulate_noted(self, observation, *, sinks=0, recent=0):
        shape = (*observation.queries.shape[:2], observation.length)
        rows, noted = shape[0], observation.noted
        state = torch.zeros(shape) if noted is None else torch.full(shape, float(noted[0][0]))
        return state, [(observation.length,)] * rows


test_a_promise_catches_a_part_that_breaks_it = promises_catch(
    "scorer",
    {
        "asks_for_a_window_that_can_be": NoWindow(),
        "scores_every_position": OneShort(),
        "takes_every_precision": OwnPrecision(),
        "takes_a_fold_without_weights": NeedsWeights(),
        "leaves_the_observation_alone": ScalesQueries(),
        "scores_the_same_twice": Counts(),
        "scores_a_sequence_as_if_alone": ComparesSequences(),
        "scores_heads_of_several_processes": ComparesHeads(),
        "runs_on_from_its_state": Forgetful(),
        "notes_what_its_state_says": NotesTooMuch(),
    },
)
test_a_blameless_part_keeps_every_promise = promises_hold("scorer", Scorer())
