"""Smooth: fold the window's queries into one row, and pool scores over neighbouring positions."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.fold import Fold
from kvpolicy.observation.observation import Observation


@runtime_checkable
class Smoother(Protocol):
    """Folds the window's queries into one row, then pools scores over neighbouring positions.

    If the class has `folds_by_maximum = True`, `temporal` takes the maximum over the queries. A
    scorer can then compute it without all rows.
    """

    def temporal(self, values: Float[Tensor, "*lead W S"]) -> Float[Tensor, "*lead S"]:
        """Fold the rows of the window's queries, oldest first, into one row."""
        ...

    def spatial(
        self, scores: Float[Tensor, "B H S"], observation: Observation
    ) -> Float[Tensor, "B H S"]:
        """Return scores pooled over neighbouring positions, for each query head."""
        ...


@runtime_checkable
class LinearSmoother(Smoother, Protocol):
    """A smoother whose temporal part is a weighted sum.

    Kernels then add up the queries one by one and never store [B, H, W, S].
    """

    def weights(self, window: int) -> Float[Tensor, " W"]:
        """Return the weight of each query, oldest first."""
        ...


def fold_of(smoother: Smoother) -> Fold:
    """Return the temporal part of `smoother`, with its weights or that it is a maximum, if so.

    >>> fold_of(MeanSmoother())(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([2., 3.])
    """
    weights = smoother.weights if isinstance(smoother, LinearSmoother) else None
    return Fold(smoother.temporal, weights, getattr(smoother, "folds_by_maximum", False))


@attrs.frozen(kw_only=True)
class MeanSmoother:
    """Averages over the window's queries, and does not pool.

    >>> MeanSmoother().weights(4)
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    capturable: ClassVar[bool] = True
    position_bias: ClassVar[bool] = True

    def weights(self, window: int) -> Float[Tensor, " W"]:
        """Return 1/W for every query."""
        return torch.full((window,), 1 / window, dtype=torch.float32, device="cpu")

    def temporal(self, values: Float[Tensor, "*lead W S"]) -> Float[Tensor, "*lead S"]:
        """Average over the window's queries."""
        return values.mean(-2)

    def spatial(
        self, scores: Float[Tensor, "B H S"], observation: Observation
    ) -> Float[Tensor, "B H S"]:
        """Return the scores unchanged."""
        return scores
