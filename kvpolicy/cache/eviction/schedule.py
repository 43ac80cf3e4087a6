"""When a layer is evicted, and which queries and tokens are remembered until then."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.cache.memory.saved import SAVED


@attrs.define(eq=False)
class Schedule:
    """Counts decoded tokens, and remembers the queries since eviction was last due.

    Eviction is due when a prompt ends, and after every `every` decoded tokens, whether or not there
    is anything to evict. So a row's turns never depend on the other rows of its batch. `window` is
    how many queries the scorer is shown; None shows all.

    `ids` are those of the last T tokens, where a scorer has the model repeat them: -1 for padding,
    and for what was repeated. Only the first layer remembers them.
    """

    every: int | None = attrs.field(metadata=SAVED)
    window: int | None = attrs.field(metadata=SAVED)
    queries: Float[Tensor, "B H Q D"] | None = attrs.field(metadata=SAVED, default=None)
    decoded: int = attrs.field(metadata=SAVED, default=0)
    ids: Int[Tensor, "B T"] | None = attrs.field(metadata=SAVED, default=None)

    @property
    def nbytes(self) -> int:
        """Bytes of the remembered queries and ids."""
        return sum(each.nbytes for each in (self.queries, self.ids) if each is not None)

    def queries_if_due(
        self, query: Float[Tensor, "B H Q D"], *, decoded: bool
    ) -> Float[Tensor, "B H W D"] | None:
        """Return the queries since eviction was last due if it is due now; else remember them.

        The keys of these queries are all held, so that the queries see one another as in the model.
        """
        if decoded and self.every is None:
            return None
        if self.queries is not None:
            query = torch.cat([self.queries, query], dim=2)
        query = query if self.window is None else query[:, :, -self.window :]
        self.decoded = self.decoded + 1 if decoded else 0
        if decoded and self.decoded < (self.every or 0):
            self.queries = query
            return None
        self.queries, self.decoded = None, 0
        return query

    def note(self, ids: Int[Tensor, "B Q"]) -> None:
        """Remember the ids of new tokens; -1 is padding."""
        self.ids = ids if self.ids is None else torch.cat([self.ids, ids], 1)

    def forget_repeated(self, rows: Int[Tensor, " rows"]) -> None:
        """Forget the ids of these rows."""
        if self.ids is not None:
            self.ids = self.ids.index_fill(0, rows.to(self.ids.device), -1)
            if not bool((self.ids >= 0).any()):
                self.ids = None

    def forget_last(self, count: int) -> None:
        """Forget the last `count` tokens."""
        self.decoded = max(0, self.decoded - count)
        if self.queries is not None:
            kept = self.queries[:, :, :-count]
            self.queries = kept if kept.shape[2] else None
        if self.ids is not None:
            known = self.ids[:, :-count]
            self.ids = known if known.shape[1] else None

    def select_rows(self, batch: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        if self.queries is not None:
            self.queries = self.queries.index_select(0, batch.to(self.queries.device))
        if self.ids is not None:
            self.ids = self.ids.index_select(0, batch.to(self.ids.device))
