"""What all forms of static rows have in common: buffers of fixed size, their slots and counts."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Self

import attrs
from jaxtyping import Shaped
from torch import Tensor

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.ragged import RaggedRows
from kvpolicy.cache.memory.rows import Rows
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.cache.static.buffers import Count, row_nbytes
from kvpolicy.cache.static.owners import number_for


@attrs.define(eq=False)
class FixedRows:
    """Buffers [B, N, C, D] of one layer, which hold the rows of `slots` first."""

    keys: Shaped[Tensor, "B N C D"]
    values: Shaped[Tensor, "B N C Dv"]
    count: Count
    slots: Slots
    """The slots when the rows were stored."""

    @property
    def held(self) -> int:
        """K, the rows that were there before the first step."""
        return self.slots.held

    @property
    def added(self) -> int:
        """Tokens that steps have added. Waits for the device."""
        return int(self.count.added)

    @property
    def slots_now(self) -> Slots:
        """The slots with those that steps have added. Waits for the device."""
        slots = self.slots.copied()
        slots.append(self.added)
        return slots

    @property
    def layout(self) -> Contents:
        """The slots and the ragged rows, without rows of the buffers."""
        keys, values = (Rows(table[:, :, :0]) for table in (self.keys, self.values))
        return Contents(keys, values, slots=self.slots_now, ragged=self.of_uneven_heads)

    @property
    def of_uneven_heads(self) -> RaggedRows | None:
        """What uneven heads hold beside the buffers; None of even heads."""
        return None

    @property
    def row_nbytes(self) -> int:
        """Bytes of the key and the value of one position."""
        return row_nbytes(self.keys, self.values)


@attrs.define(eq=False)
class SteadyRows(FixedRows):
    """Buffers [B, N, K + 1, D]: each step adds a row and frees one, so that K stay."""

    SHARED: ClassVar[frozenset[str]] = frozenset()
    """Fields that a copy has in common with the rows that it was made of."""
    number: int = attrs.field(init=False)
    """By which an operation of a captured step finds these rows."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return rows that go their own way."""
        fields = {
            each.name: getattr(self, each.name)
            if each.name in self.SHARED
            else copy.deepcopy(getattr(self, each.name), memo)
            for each in attrs.fields(type(self))
            if each.init
        }
        twin = type(self)(**fields)
        twin.number = number_for(twin)
        return twin

    @property
    def width(self) -> int:
        """The columns that a mask needs."""
        return self.held + 1

    @property
    def left(self) -> None:
        """Any number of tokens fits."""
        return
