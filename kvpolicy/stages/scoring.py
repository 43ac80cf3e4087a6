"""Score: how much each cached position matters."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import attrs
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation


@runtime_checkable
class Scorer(Protocol):
    """Scores positions; those with higher scores are kept."""

    @property
    def window(self) -> int | None:
        """How many of the last queries it must be shown; None for all of the prompt."""
        ...

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return finite float32 scores, one per query head and position.

        `reduce` takes (..., W, S) to (..., S): where in the formula it is applied is the scorer's
        choice.
        """
        ...


@runtime_checkable
class RunningScorer(Scorer, Protocol):
    """A scorer with running state: numbers for each query head and position, over all forwards.

    The cache keeps the state beside the keys: it is gathered, cropped and reordered with them.
    """

    def accumulate(self, observation: Observation) -> Float[Tensor, "B H S *rest"]:
        """Return the state after one more forward; called for every forward, before `score`.

        The observation shows *all* queries of that forward, and in `state` what there was before
        it: 0 for positions that are new. None: the sequence begins.
        """
        ...


def with_state(scorer: Scorer, observation: Observation) -> Observation:
    """Return the observation as `scorer` wants it: with running state, made of what is shown.

    An observation that has its state, or whose scorer needs none, is returned as it is.
    """
    if observation.state is not None or not isinstance(scorer, RunningScorer):
        return observation
    return attrs.evolve(observation, state=scorer.accumulate(observation))
