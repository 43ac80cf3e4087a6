"""Notes beside a running state: who is asked for them, and what is no note."""

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.errors import InvalidComponentError
from kvpolicy.pipeline.notes import accumulated
from kvpolicy.testing import observation


@attrs.frozen
class Noting:
    """Notes what it is told."""

    noted: object
    window: int = 1

    def accumulate(self, observation):
        return torch.zeros(*observation.queries.shape[:2], observation.length)

    def accumulate_noted(self, observation, *, sinks=0, recent=0):
        noted = [(sinks, recent)] * len(observation.keys) if self.noted is None else self.noted
        return self.accumulate(observation), noted

    def score(self, observation, reduce):
        return observation.state


def noted_by(scorer, **settings):
    policy = kvpolicy.compose(scorer=scorer, budget=8, **settings)
    state, noted = accumulated(policy, observation(positions=10, budget=8, batch=2))
    assert state.shape[:3] == (2, 4, 10)
    return noted


def test_a_scorer_is_told_which_rows_stay_whatever_it_says():
    assert noted_by(Noting(None), sinks=2, recent=0.5) == [(2, 4), (2, 4)]


@pytest.mark.parametrize("settings", [{"per_turn": True}, {"smoother": "spatiotemporal"}])
def test_a_scorer_whose_scores_others_change_is_not_asked(settings):
    assert noted_by(Noting(None), **settings) is None


@pytest.mark.parametrize("noted", [[(1,)], [1, 2], ((1,), (2,)), "ab"])
def test_what_is_no_note_is_refused(noted):
    with pytest.raises(InvalidComponentError, match=r"scorer Noting returned .* 2 tuples"):
        noted_by(Noting(noted))
