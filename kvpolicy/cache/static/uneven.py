"""Static rows of uneven heads: ragged rows that stay as they are, and a tail of fixed size.

The tail is written from its end to its beginning. So what is not written yet stands first, where
`ragged_attention` expects padding, and the number of padding slots is a number on the device.
"""

from __future__ import annotations

import attrs
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.ragged import RaggedRows
from kvpolicy.cache.memory.rows import Rows
from kvpolicy.cache.memory.sent import sent
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.cache.static.buffers import Count, buffers_for, nbytes, spoiled, writable
from kvpolicy.cache.static.fixed import FixedRows
from kvpolicy.cache.static.operators import attend_ragged


@attrs.define(eq=False)
class StaticRagged(FixedRows):
    """Ragged rows, and buffers [B, N, C, D] for the tokens behind them.

    `slots` are those of the tail; the ragged rows have none.
    """

    ragged: RaggedRows
    lengths: list[int]
    """How many ragged rows each sequence and head has."""
    tokens: Int64[Tensor, " B"]
    """How many tokens of each row the tail had when it was stored."""

    @classmethod
    def of(cls, contents: Contents, room: int, before: StaticRagged | None) -> StaticRagged:
        """Hold these contents; buffers of an earlier conversation are used again if they fit.

        Raises TypeError for contents without ragged rows.
        """
        slots, ragged = contents.slots, contents.ragged
        if ragged is None:
            raise TypeError("these contents have no ragged rows")
        keys, values = buffers_for(contents, room, before)
        _fill_backwards(keys, contents.keys.view, slots.lengths)
        _fill_backwards(values, contents.values.view, slots.lengths)
        with writable():
            tokens = sent(slots.lengths, slots.device)
        return cls(
            keys,
            values,
            count=Count.new(slots.device) if before is None else before.count,
            slots=slots,
            ragged=ragged,
            lengths=ragged.lengths.flatten().tolist(),
            tokens=tokens,
        )

    @property
    def held(self) -> int:
        """Slots of the head that held the most before the first step."""
        return self.ragged.longest + self.slots.held

    @property
    def width(self) -> int:
        """The columns that a mask would need; attention over uneven heads takes none."""
        return self.ragged.longest + self.keys.shape[2]

    @property
    def left(self) -> int:
        """How many more tokens fit. Waits for the device."""
        return self.keys.shape[2] - self.slots.held - self.added

    def write(
        self, keys: Shaped[Tensor, "B N 1 D"], values: Shaped[Tensor, "B N 1 Dv"]
    ) -> tuple[Shaped[Tensor, "B N C D"], Shaped[Tensor, "B N C Dv"]]:
        """Write one token before the others of the tail, and return the tail."""
        place = (self.keys.shape[2] - 1 - self.count.added - self.tokens)[:, None, None, None]
        keys = spoiled(keys, (place < 0).any())
        place = place.clamp(min=0)
        self.keys.scatter_(2, place.expand_as(keys), keys)
        self.values.scatter_(2, place.expand_as(values), values)
        self.count.step()
        return self.keys, self.values

    def attend(
        self,
        queries: Float[Tensor, "B H 1 D"],
        scaling: float,
        softcap: float | None = None,
        sinks: Float[Tensor, " H"] | None = None,
    ) -> Float[Tensor, "B 1 H Dv"]:
        """Attend to the ragged rows and to the tail, the newest token included."""
        padding = (self.keys.shape[2] - self.count.added - self.tokens).clamp(min=0)
        output = attend_ragged(
            queries,
            (self.ragged.keys, self.ragged.values),
            self.lengths,
            (self.keys, self.values),
            padding,
            scaling,
            softcap,
            sinks,
        )
        return output.to(queries.dtype).transpose(1, 2).contiguous()

    @property
    def of_uneven_heads(self) -> RaggedRows:
        """The ragged rows."""
        return self.ragged

    def load(self) -> Contents:
        """Return the ragged rows, and a copy of the tail in the order of its tokens."""
        slots = self.slots_now
        keys, values = (_forwards(table, slots) for table in (self.keys, self.values))
        return Contents(Rows(keys), Rows(values), slots=slots, ragged=self.ragged)

    @property
    def nbytes(self) -> int:
        """Bytes allocated, room included."""
        return nbytes(self.keys, self.values, self.tokens, self.ragged, self.slots)


def _fill_backwards(
    buffer: Shaped[Tensor, "B N C D"], rows: Shaped[Tensor, "B N S D"], lengths: list[int]
) -> None:
    """Write the last `lengths` of each row, so that its first token comes last in the buffer."""
    with writable():
        for row, length in enumerate(lengths):
            first = rows.shape[2] - length
            buffer[row, :, buffer.shape[2] - length :] = rows[row, :, first:].flip(1)


def _forwards(buffer: Shaped[Tensor, "B N C D"], slots: Slots) -> Shaped[Tensor, "B N S D"]:
    """Return the tokens in their order, right-aligned."""
    shape = (*buffer.shape[:2], slots.held, buffer.shape[3])
    rows = buffer.new_zeros(shape)
    for row, length in enumerate(slots.lengths):
        if length:
            rows[row, :, slots.held - length :] = buffer[row, :, -length:].flip(1)
    return rows
