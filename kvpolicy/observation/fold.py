"""How a scorer is handed the smoother's temporal part: one call that folds W queries into one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import attrs
from jaxtyping import Float
from torch import Tensor

Reduce: TypeAlias = Callable[[Tensor], Tensor]
"""Takes (..., W, S) to (..., S): how a smoother folds the window's queries into one row."""


@attrs.frozen
class Fold:
    """A smoother's temporal part; `weights` is None where it is not a weighted sum."""

    temporal: Reduce
    weights: Callable[[int], Tensor] | None = None

    def __call__(self, values: Float[Tensor, "*lead W S"]) -> Float[Tensor, "*lead S"]:
        """Fold the window's queries, oldest first, into one row."""
        return self.temporal(values)


def weights_of(reduce: Reduce, window: int) -> Float[Tensor, " W"] | None:
    """Return the weights with which `reduce` sums a window's queries; None if it does not.

    >>> weights_of(lambda values: values.amax(-2), 4)
    """
    if isinstance(reduce, Fold) and reduce.weights is not None:
        return reduce.weights(window)
    return None
