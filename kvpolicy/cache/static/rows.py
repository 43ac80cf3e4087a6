"""Static rows of even heads: what was kept, and room for the tokens that are decoded."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.rows import Rows
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.cache.static.buffers import Count, buffers_for, fill, nbytes, spoiled
from kvpolicy.cache.static.fixed import FixedRows


@attrs.define(eq=False)
class StaticRows(FixedRows):
    """Buffers [B, N, K + room, D] whose first K rows are those that an eviction left.

    `real` says which of them are tokens; None if all are.
    """

    real: Bool[Tensor, "B K"] | None

    @classmethod
    def of(cls, contents: Contents, room: int, before: StaticRows | None) -> StaticRows:
        """Hold these contents; buffers of an earlier conversation are used again if they fit."""
        slots = contents.slots
        keys, values = buffers_for(contents, room, before)
        fill(keys, contents.keys.view)
        fill(values, contents.values.view)
        return cls(
            keys,
            values,
            count=Count.new(slots.device) if before is None else before.count,
            slots=slots,
            real=_real(slots) if slots.is_padded else None,
        )

    @property
    def width(self) -> int:
        """C, the columns that a mask needs."""
        return self.keys.shape[2]

    @property
    def left(self) -> int:
        """How many more tokens fit. Waits for the device."""
        return self.width - self.held - self.added

    def write(
        self, keys: Shaped[Tensor, "B N 1 D"], values: Shaped[Tensor, "B N 1 Dv"]
    ) -> tuple[Shaped[Tensor, "B N C D"], Shaped[Tensor, "B N C Dv"]]:
        """Write one token behind the others, and return all rows; those to come are zeros."""
        place = self.count.added + self.held
        last = self.width - 1
        at = place.clamp(max=last).view(1)
        self.keys.index_copy_(2, at, spoiled(keys, place > last))
        self.values.index_copy_(2, at, values)
        self.count.step()
        return self.keys, self.values

    @property
    def visible(self) -> Bool[Tensor, "B C"]:
        """Which rows the token that was written last sees."""
        columns = torch.arange(self.width, device=self.keys.device)
        seen = (columns < self.count.added + self.held).expand(self.keys.shape[0], -1)
        if self.real is None:
            return seen
        return seen & torch.nn.functional.pad(self.real, (0, self.width - self.held), value=True)

    def load(self) -> Contents:
        """Return a copy of all rows in use."""
        slots = self.slots_now
        keys, values = (table[:, :, : slots.held].clone() for table in (self.keys, self.values))
        return Contents(Rows(keys), Rows(values), slots=slots)

    @property
    def nbytes(self) -> int:
        """Bytes allocated, room included."""
        return nbytes(self.keys, self.values, self.real, self.slots)


def _real(slots: Slots) -> Bool[Tensor, "B K"]:
    positions = slots.positions[:, 0]
    return positions >= 0
