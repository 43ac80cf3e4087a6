"""A shard: the heads of a layer that one process has, where several share the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
from torch import Tensor

Exchange = Callable[[Tensor], Sequence[Tensor]]
"""Takes a tensor of this process, and returns those of all processes, in the order of heads."""


@attrs.frozen(kw_only=True, eq=False)
class Shard:
    """Where the heads of this process begin among the query heads of a layer, and their exchange.

    All processes must exchange the same things in the same order.
    """

    first_head: int
    exchange: Exchange

    def alone(self) -> Shard:
        """Return the same place, for heads that are compared with no others."""
        return attrs.evolve(self, exchange=lambda mine: (mine,))
