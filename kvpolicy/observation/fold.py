"""The smoother's temporal part, as a scorer is given it: a function that folds W rows into one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

Reduce: TypeAlias = Callable[[Tensor], Tensor]
"""A function from (..., W, S) to (..., S). It folds the rows of the window's queries into one."""

Weights: TypeAlias = Float[Tensor, " W"] | Float[Tensor, "B W"]
"""The weight of each query: the same for all sequences, or each has its own."""


@attrs.frozen
class Fold:
    """A smoother's temporal part.

    `weights` gives the weight of each of W queries. It is None if the part is no weighted sum. A
    smoother has the same weights for all sequences. Where queries are replayed, each has its own.
    `is_maximum` says that the part takes the maximum over the queries.
    """

    temporal: Reduce
    weights: Callable[[int], Tensor] | None = None
    is_maximum: bool = False
    _sent: dict[tuple[int, torch.device], Tensor] = attrs.field(
        factory=dict, init=False, eq=False, repr=False
    )

    def weights_on(self, device: torch.device, window: int) -> Weights | None:
        """Return the weights of W queries on a device, in float32; they are sent there once."""
        if self.weights is None:
            return None
        # On a CPU nothing is sent.
        known = None if device.type == "cpu" else self._sent.get((window, device))
        if known is None:
            known = self.weights(window).to(device, torch.float32, non_blocking=True)
            self._sent[window, device] = known
        return known

    def __call__(self, values: Float[Tensor, "*lead W S"]) -> Float[Tensor, "*lead S"]:
        """Fold the rows of the window's queries, oldest first, into one row."""
        return self.temporal(values)


def weighted(weights: Weights, values: Float[Tensor, "B H W S"]) -> Float[Tensor, "B H S"]:
    """Return the weighted sum over the queries.

    >>> weighted(torch.tensor([[1.0, 2.0]]), torch.ones(1, 3, 2, 4)).shape
    torch.Size([1, 3, 4])
    """
    if weights.dim() == 1:
        return weights @ values
    return (weights[:, None, None] @ values)[..., 0, :]


def weights_of(reduce: Reduce, window: int, device: torch.device | None = None) -> Weights | None:
    """Return the weights with which `reduce` sums W queries; None if it is no weighted sum.

    With a `device` they are there, in float32.

    >>> weights_of(lambda values: values.amax(-2), 4)
    """
    if not isinstance(reduce, Fold) or reduce.weights is None:
        return None
    return reduce.weights(window) if device is None else reduce.weights_on(device, window)


def is_maximum(reduce: Reduce) -> bool:
    """Return whether `reduce` is known to take the maximum over the window's queries.

    >>> is_maximum(lambda values: values.amax(-2))
    False
    """
    return isinstance(reduce, Fold) and reduce.is_maximum
