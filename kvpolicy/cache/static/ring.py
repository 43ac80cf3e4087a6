"""Static rows of a policy by recency: sinks, and a ring of the other rows.

The newest token takes the place of the oldest. Nothing is scored, selected or moved.
"""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.rows import Rows
from kvpolicy.cache.memory.sent import sent
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.cache.static.buffers import (
    Count,
    buffers_for,
    fill,
    kept,
    nbytes,
    writable,
)
from kvpolicy.cache.static.fixed import SteadyRows
from kvpolicy.cache.static.operators import turn_sinks
from kvpolicy.cache.static.owners import number_for
from kvpolicy.observation.rotary import Rotary
from kvpolicy_kernels import rerotate_keys


@attrs.define(eq=False)
class StaticRing(SteadyRows):
    """Buffers [B, N, K + 1, D]: `sinks` rows that stay, and a ring of the others.

    A token attends to K + 1 rows, itself included. Behind it the oldest row of the ring is free.
    With `rotary` the keys of sinks are rotated so that they are as far from the newest token as
    their slots are; `of_sinks` are those keys as the model rotated them.
    """

    SHARED: ClassVar[frozenset[str]] = frozenset({"rotary"})
    sinks: int
    of_sinks: Shaped[Tensor, "B N sinks D"]
    offsets: Int64[Tensor, "B 1 1"]
    """By how much the position of a row's newest token exceeds the tokens that steps have added."""
    rotary: Rotary | None

    @classmethod
    def of(
        cls, contents: Contents, before: StaticRing | None, *, sinks: int, rotary: Rotary | None
    ) -> StaticRing:
        """Hold these contents, of rows that all hold as many tokens as the budget allows."""
        slots = contents.slots
        keys, values = buffers_for(contents, 1, before)
        fill(keys, contents.keys.view)
        fill(values, contents.values.view)
        first = contents.keys.view[:, :, :sinks]
        earlier = None if before is None else before.of_sinks
        of_sinks = kept(earlier, tuple(first.shape), first.dtype, first.device)
        fill(of_sinks, first)
        with writable():
            offsets = sent([seen - 1 for seen in slots.seen], slots.device)[:, None, None]
        ring = cls(
            keys,
            values,
            count=Count.new(slots.device) if before is None else before.count,
            slots=slots,
            sinks=sinks,
            of_sinks=of_sinks,
            offsets=offsets,
            rotary=rotary,
        )
        ring.number = number_for(ring, before)
        return ring

    @property
    def _ring(self) -> int:
        return self.width - self.sinks

    def write(
        self, keys: Shaped[Tensor, "B N 1 D"], values: Shaped[Tensor, "B N 1 Dv"]
    ) -> tuple[Shaped[Tensor, "B N C D"], Shaped[Tensor, "B N C Dv"]]:
        """Write one token into the free row, and return all rows."""
        place = self.sinks + (self.held - self.sinks + self.count.added) % self._ring
        at = place.view(1)
        self.keys.index_copy_(2, at, keys)
        self.values.index_copy_(2, at, values)
        self.count.step()
        if self.rotary is not None and self.sinks:
            turn_sinks(self.keys, self.of_sinks, self.offsets + self.count.added, self.number)
        return self.keys, self.values

    def turn(
        self, of_sinks: Shaped[Tensor, "B N sinks D"], newest: Int64[Tensor, "B 1 1"]
    ) -> Shaped[Tensor, "B N sinks D"]:
        """Return the keys of sinks as if the newest token, at its position, were at slot K.

        Raises TypeError where slots are not followed.
        """
        if self.rotary is None:
            raise TypeError("the positions of this ring do not follow slots")
        by = (newest - self.held).expand(-1, -1, of_sinks.shape[2])
        old = self.rotary.tables(torch.zeros_like(by))
        new = self.rotary.tables(by)
        return rerotate_keys(of_sinks, old, new, interleaved=self.rotary.interleaved)

    @property
    def slots_now(self) -> Slots:
        """The slots as they are now. Waits for the device."""
        slots, added = self.slots.copied(), self.added
        known = self.slots.positions
        known = torch.cat([known[..., : self.sinks], known[..., self.sinks :] + added], -1)
        slots.replace(known, list(slots.lengths))
        slots.seen = [seen + added for seen in slots.seen]
        if not added:
            slots.moved = self.slots.moved
        return slots

    def load(self) -> Contents:
        """Return a copy of all rows in the order of their tokens."""
        free = (self.held - self.sinks + self.added) % self._ring
        places = [self.sinks + (free + 1 + each) % self._ring for each in range(self._ring - 1)]
        order = sent([*range(self.sinks), *places], self.keys.device)
        keys, values = (table.index_select(2, order) for table in (self.keys, self.values))
        keys[:, :, : self.sinks] = self.of_sinks
        return Contents(Rows(keys), Rows(values), slots=self.slots_now)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return nbytes(self.keys, self.values, self.of_sinks, self.slots)
