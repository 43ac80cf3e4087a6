"""Rows of uneven heads: each head's rows behind those of the head before it, without padding."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import attrs
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from kvpolicy.cache.memory.saved import SAVED


def _on_the_host(lengths: Tensor) -> Tensor:
    return lengths.cpu()


@attrs.frozen(kw_only=True, eq=False)
class RaggedRows:
    """R rows of all sequences and heads of a layer, in that order; they are never written to again.

    The bytes held are the bytes of the selected rows: there is neither padding nor slack. Later
    tokens go to dense rows, which all heads share.
    """

    keys: Shaped[Tensor, "R D"] = attrs.field(metadata=SAVED)
    values: Shaped[Tensor, "R Dv"] = attrs.field(metadata=SAVED)
    positions: Int[Tensor, " R"] = attrs.field(metadata=SAVED)
    lengths: Int[Tensor, "B N"] = attrs.field(metadata=SAVED, converter=_on_the_host)
    """How many rows each head holds; on the CPU."""
    state: Float[Tensor, "R G *rest"] | None = attrs.field(metadata=SAVED, default=None)
    """Running state of the G query heads that read each row."""
    bias: Float[Tensor, " R"] | None = attrs.field(metadata=SAVED, default=None)
    """What attention adds to the logit of each row, in float32 at least; None adds nothing."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        owned = (self.keys, self.values, self.positions, self.state, self.bias)
        return sum(each.nbytes for each in owned if each is not None)

    @property
    def longest(self) -> int:
        """The most rows that a head holds."""
        return int(self.lengths.max())

    def is_consistent(self, shape: tuple[int, int]) -> bool:
        """Whether lengths are of (B, N), and there are as many rows as the lengths say."""
        count = int(self.lengths.sum())
        flat = (self.keys, self.values, self.positions, self.bias)
        fits = all(each is None or len(each) == count for each in flat)
        return fits and tuple(self.lengths.shape) == shape

    def heads(self) -> Iterator[tuple[int, int, slice]]:
        """Yield every sequence and head with the slice of its rows."""
        first = 0
        pairs = product(*map(range, self.lengths.shape))
        for (row, head), length in zip(pairs, self.lengths.flatten().tolist(), strict=True):
            yield row, head, slice(first, first + length)
            first += length

    def slices(self) -> list[list[slice]]:
        """Return the slices of all heads, by sequence."""
        found: list[list[slice]] = [[] for _ in range(self.lengths.shape[0])]
        for row, _, rows in self.heads():
            found[row].append(rows)
        return found

    def padded(
        self, flat: Shaped[Tensor, R * rest], fill: int = 0
    ) -> Shaped[Tensor, "B N S *rest"]:
        """Return one of its tensors as [B, N, longest, ...], each head right-aligned."""
        shape = (*self.lengths.shape, self.longest, *flat.shape[1:])
        dense = torch.full(shape, fill, dtype=flat.dtype, device=flat.device)
        for row, head, rows in self.heads():
            dense[row, head, dense.shape[2] - (rows.stop - rows.start) :] = flat[rows]
        return dense

    def of_rows(self, batch: list[int]) -> RaggedRows:
        """Keep, repeat or reorder the sequences of the batch."""
        slices = self.slices()
        places = torch.arange(len(self.positions), device="cpu")
        taken = torch.cat([places[rows] for row in batch for rows in slices[row]])
        return self._taking(taken, self.lengths[batch])

    def before(self, ends: list[int]) -> RaggedRows:
        """Keep the rows before a position; each sequence has an end of its own."""
        limits = torch.tensor(ends, device="cpu").repeat_interleave(self.lengths.sum(1))
        kept: Bool[Tensor, " R"] = self.positions.cpu() < limits
        counts = [int(kept[rows].sum()) for _, _, rows in self.heads()]
        lengths = torch.tensor(counts, device="cpu").view_as(self.lengths)
        return self._taking(kept.nonzero()[:, 0], lengths)

    def _taking(self, rows: Int[Tensor, " R2"], lengths: Int[Tensor, "B2 N"]) -> RaggedRows:
        rows = rows.to(self.keys.device)
        return RaggedRows(
            keys=self.keys[rows],
            values=self.values[rows],
            positions=self.positions[rows],
            lengths=lengths,
            state=None if self.state is None else self.state[rows],
            bias=None if self.bias is None else self.bias[rows],
        )
