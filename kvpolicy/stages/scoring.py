"""Score: how much each cached position matters."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from kvpolicy.stages.observation import Observation
from kvpolicy.stages.reduction import Reduce


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
