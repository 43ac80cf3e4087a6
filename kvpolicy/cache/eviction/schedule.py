"""When a layer is evicted, and which queries are to judge then."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.policy import Policy


class Schedule:
    """Counts decoded tokens, and remembers the queries since eviction was last due.

    Eviction is due when a prompt ends and after every so many decoded tokens, whether or not there
    is anything to evict: so a row's turns never depend on its batch mates.
    """

    def __init__(self, policy: Policy) -> None:
        """Start with nothing remembered."""
        self._every = policy.every
        self._window = policy.scorer.window
        self._queries: Tensor | None = None
        self._decoded = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the queries remembered."""
        return 0 if self._queries is None else self._queries.nbytes

    def queries_if_due(
        self, query: Float[Tensor, "B H Q D"], *, decoded: bool
    ) -> Float[Tensor, "B H W D"] | None:
        """Return the queries since eviction was last due if it is due now, else remember them.

        Their keys are all held, so that they see one another as in the model.
        """
        if decoded and self._every is None:
            return None
        if self._queries is not None:
            query = torch.cat([self._queries, query], dim=2)
        query = query if self._window is None else query[:, :, -self._window :]
        self._decoded = self._decoded + 1 if decoded else 0
        if decoded and self._decoded < (self._every or 0):
            self._queries = query
            return None
        self._queries, self._decoded = None, 0
        return query

    def forget_last(self, count: int) -> None:
        """Forget the last `count` tokens."""
        self._decoded = max(0, self._decoded - count)
        if self._queries is not None:
            kept = self._queries[:, :, :-count]
            self._queries = kept if kept.shape[2] else None

    def select_rows(self, batch: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        if self._queries is not None:
            self._queries = self._queries.index_select(0, batch.to(self._queries.device))
