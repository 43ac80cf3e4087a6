"""What some models add to the logits of attention for the distance of a query and a key."""

from __future__ import annotations

import attrs
from jaxtyping import Float, Int
from torch import Tensor


@attrs.frozen(kw_only=True, eq=False)
class PositionBias:
    """The bias of the last Q queries by the tokens that keys belong to, wherever the keys are now.

    `table` has a column for each of the last C tokens read, padding included; for older ones the
    bias is 0. `read` counts all tokens read. Position p of a row is token p, or token
    p + `shifts` of the row, or the token that `tokens` names.

    >>> import torch
    >>> bias = PositionBias(table=torch.tensor([[[[2.0, 1.0, 0.5]]]]), read=9)
    >>> bias.of(torch.tensor([[[0, 6, 8]]])).flatten()
    tensor([0.0000, 2.0000, 0.5000])
    """

    table: Float[Tensor, "#B H Q C"]
    read: int
    shifts: Int[Tensor, " B"] | None = None
    tokens: Int[Tensor, "B P"] | None = None

    def of_heads(self, heads: slice) -> PositionBias:
        """Return the bias of some of the query heads."""
        return attrs.evolve(self, table=self.table[:, heads])

    def of(
        self,
        positions: Int[Tensor, "b n S"],
        *,
        rows: slice = slice(None),
        count: int | None = None,
    ) -> Float[Tensor, "b H count S"]:
        """Return the bias of the last `count` queries and keys at these positions, or of all.

        `positions` are those of each key/value head of the sequences `rows`; below 0 is padding,
        and has any number. Gradients flow to the table.
        """
        table = self.table if len(self.table) == 1 else self.table[rows]
        table = table if count is None else table[:, :, table.shape[2] - count :]
        columns = self._tokens_of(positions, rows) - (self.read - table.shape[3])
        heads, queries = table.shape[1:3]
        columns = columns.repeat_interleave(heads // columns.shape[1], 1)[:, :, None]
        columns = columns.expand(-1, -1, queries, -1)
        found = table.expand(len(columns), -1, -1, -1).gather(
            3, columns.clamp(0, table.shape[3] - 1)
        )
        return found.masked_fill(columns < 0, 0)

    def _tokens_of(self, positions: Int[Tensor, "b n S"], rows: slice) -> Int[Tensor, "b n S"]:
        if self.tokens is not None:
            own = self.tokens[rows]
            places = positions.clamp(min=0).flatten(1)
            return own.gather(1, places).view_as(positions)
        if self.shifts is not None:
            return positions + self.shifts[rows, None, None]
        return positions
