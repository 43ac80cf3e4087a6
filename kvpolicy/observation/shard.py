"""A shard: the heads of a layer that one process has, if several processes share the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
from torch import Tensor

Exchange = Callable[[Tensor], Sequence[Tensor]]
"""Takes a tensor of this process. Returns the tensors of all processes in the order of heads."""


@attrs.frozen(kw_only=True, eq=False)
class Shard:
    """The first query head of this process, and how processes exchange tensors.

    All processes must exchange the same things in the same order.
    """

    first_head: int
    exchange: Exchange

    def alone(self) -> Shard:
        """Return this shard without exchange, for heads that are compared with no others."""
        return attrs.evolve(self, exchange=lambda mine: (mine,))
