"""The queries by which a set of positions is judged, and how much each counts."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class Queries(NamedTuple):
    """M queries of each query head.

    `weights` say how much each counts, in each row of the batch. Query m sees the first `seen[m]`
    positions. `scaling`, `softcap` and `sinks`, a learned sink for each head, are those of the
    model's attention.
    """

    rows: Float[Tensor, "B H M D"]
    weights: Float[Tensor, "B M"]
    seen: Int[Tensor, " M"]
    scaling: float
    softcap: float | None = None
    sinks: Float[Tensor, " H"] | None = None

    def part(self, heads: slice, queries: slice) -> Queries:
        """Return some of the queries of some of the query heads."""
        return self._replace(
            rows=self.rows[:, heads, queries],
            weights=self.weights[:, queries],
            seen=self.seen[queries],
            sinks=None if self.sinks is None else self.sinks[heads],
        )
