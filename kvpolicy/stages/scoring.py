"""Score: how much each cached position matters."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import attrs
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.note import Notes
from kvpolicy.observation.observation import Observation
from kvpolicy.observation.repetition import Repeated, Repetition


@runtime_checkable
class Scorer(Protocol):
    """Gives each position a score. Positions with higher scores are kept."""

    @property
    def window(self) -> int | None:
        """How many of the last queries the scorer needs; None if it needs all of the prompt."""
        ...

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return finite float32 scores, one for each query head and position.

        `reduce` takes (..., W, S) to (..., S). The scorer decides where in its formula it applies
        `reduce`.
        """
        ...


@runtime_checkable
class RunningScorer(Scorer, Protocol):
    """A scorer with running state: numbers that it keeps over all forwards.

    There are numbers for each query head and position. The cache keeps them beside the keys, and
    gathers, crops and reorders them with the keys.
    """

    def accumulate(self, observation: Observation) -> Float[Tensor, "B H S *rest"]:
        """Return the state after one more forward. Every forward calls this, before `score`.

        The observation shows all queries of that forward. Its `state` is the state before it: 0 for
        new positions, and None at the start of a sequence.
        """
        ...


@runtime_checkable
class NotingScorer(RunningScorer, Protocol):
    """A scorer whose running state decides how many positions are kept.

    The host has to know that number, and to read it from a state waits for the device. So the
    scorer notes for each row what it will have to know. The cache keeps the notes beside the state,
    and shows them with it. It forgets them where tokens are taken back, and in files. It asks for
    none where others change the scores: a smoother that pools, spans, or a budget for each turn.
    """

    def accumulate_noted(
        self, observation: Observation, *, sinks: int = 0, recent: int = 0
    ) -> tuple[Float[Tensor, "B H S *rest"], Notes]:
        """Return what `accumulate` returns, and a list with a note for each row.

        None stands for notes that are not known. The first `sinks` and the last `recent` rows are
        kept whatever their scores.
        """
        ...


@runtime_checkable
class RepeatingScorer(RunningScorer, Protocol):
    """A scorer that has the model read each prompt a second time, before anything is evicted.

    What it learns of a chunk becomes the running state of the chunk's positions.
    """

    @property
    def repetition(self) -> Repetition:
        """How prompts are repeated."""
        ...

    def repeated(self, repeated: Repeated) -> Float[Tensor, "B H C *rest"]:
        """Return the state of the C positions of a chunk, from the tokens that repeat it."""
        ...


def with_state(scorer: Scorer, observation: Observation) -> Observation:
    """Return the observation with the running state that `scorer` needs.

    A missing state is computed from the queries shown. An observation that has its state, or whose
    scorer keeps none, is returned unchanged.
    """
    if observation.state is not None or not isinstance(scorer, RunningScorer):
        return observation
    return attrs.evolve(observation, state=scorer.accumulate(observation))
