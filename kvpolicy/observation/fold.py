"""The smoother's temporal part, as a scorer is given it: a function that folds W rows into one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import attrs
from jaxtyping import Float
from torch import Tensor

Reduce: TypeAlias = Callable[[Tensor], Tensor]
"""A function from (..., W, S) to (..., S). It folds the rows of the window's queries into one."""


@attrs.frozen
class Fold:
    """A smoother's temporal part.

    `weights` gives the weight of each of W queries. It is None if the part is no weighted sum.
    """

    temporal: Reduce
    weights: Callable[[int], Tensor] | None = None

    def __call__(self, values: Float[Tensor, "*lead W S"]) -> Float[Tensor, "*lead S"]:
        """Fold the rows of the window's queries, oldest first, into one row."""
        return self.temporal(values)


def weights_of(reduce: Reduce, window: int) -> Float[Tensor, " W"] | None:
    """Return the weights with which `reduce` sums W queries; None if it is no weighted sum.

    >>> weights_of(lambda values: values.amax(-2), 4)
    """
    if isinstance(reduce, Fold) and reduce.weights is not None:
        return reduce.weights(window)
    return None
