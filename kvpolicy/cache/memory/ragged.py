"""What an uneven eviction leaves: every head's rows one after another, as many as it kept."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@attrs.frozen(kw_only=True, eq=False)
class Prefix:
    """R rows of all sequences and heads of a layer, in that order; never written to again.

    Bytes held are bytes selected: there is neither padding nor slack. Later tokens go to a dense
    tail beside it, which all heads share.
    """

    keys: Float[Tensor, "R D"]
    values: Float[Tensor, "R Dv"]
    positions: Int[Tensor, " R"]
    lengths: Int[Tensor, "B N"]
    """How many rows each head holds; on the CPU."""
    state: Float[Tensor, "R G *rest"] | None = None
    """Running state of the G query heads that read each row."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        owned = (self.keys, self.values, self.positions, self.state)
        return sum(each.nbytes for each in owned if each is not None)

    @property
    def longest(self) -> int:
        """The most rows that a head holds."""
        return int(self.lengths.max())

    def heads(self) -> Iterator[tuple[int, int, slice]]:
        """Yield every sequence and head with the slice of its rows."""
        first = 0
        pairs = product(*map(range, self.lengths.shape))
        for (row, head), length in zip(pairs, self.lengths.flatten().tolist(), strict=True):
            yield row, head, slice(first, first + length)
            first += length

    def slices(self) -> list[list[slice]]:
        """Return the rows of every head, by sequence."""
        found: list[list[slice]] = [[] for _ in range(self.lengths.shape[0])]
        for row, _, rows in self.heads():
            found[row].append(rows)
        return found

    def padded(self, flat: Tensor, fill: int = 0) -> Tensor:
        """Return one of its tensors as [B, N, longest, ...], each head right-aligned."""
        shape = (*self.lengths.shape, self.longest, *flat.shape[1:])
        dense = flat.new_full(shape, fill)
        for row, head, rows in self.heads():
            dense[row, head, dense.shape[2] - (rows.stop - rows.start) :] = flat[rows]
        return dense

    def of_rows(self, batch: list[int]) -> Prefix:
        """Keep, repeat or reorder the sequences of the batch."""
        slices = self.slices()
        places = torch.arange(len(self.positions))
        taken = torch.cat([places[rows] for row in batch for rows in slices[row]])
        return self._taking(taken, self.lengths[batch])

    def before(self, ends: list[int]) -> Prefix:
        """Keep what lies before a position, which each sequence has its own of."""
        limits = torch.tensor(ends).repeat_interleave(self.lengths.sum(1))
        kept: Bool[Tensor, " R"] = self.positions.cpu() < limits
        lengths = torch.tensor([int(kept[rows].sum()) for _, _, rows in self.heads()])
        return self._taking(kept.nonzero()[:, 0], lengths.view_as(self.lengths))

    def _taking(self, rows: Int[Tensor, " R2"], lengths: Int[Tensor, "B2 N"]) -> Prefix:
        rows = rows.to(self.keys.device)
        return Prefix(
            keys=self.keys[rows],
            values=self.values[rows],
            positions=self.positions[rows],
            lengths=lengths,
            state=None if self.state is None else self.state[rows],
        )
