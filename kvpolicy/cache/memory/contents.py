"""What a layer holds, with room to grow, so that a decoded token costs one row, not a copy."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor, is_inference_mode_enabled

from kvpolicy.cache.memory.ragged import Prefix
from kvpolicy.cache.memory.slots import Slots


class Rows:
    """[B, N, C, D] preallocated rows, of which the first `held` are in use.

    The slack is bounded: a full buffer grows by 1/16, at least 16 rows, and is not kept for less
    than 8/9 of its rows, or all but 32.
    """

    def __init__(self, first: Float[Tensor, "B N S D"]) -> None:
        """Take over the first rows as they are; there is no slack until the first append."""
        first = first.contiguous()
        # A view would keep alive what it is a view of.
        owned = first.untyped_storage().nbytes() == first.nbytes
        self.buffer = first if owned else first.clone()
        self.held = first.shape[2]

    @property
    def view(self) -> Float[Tensor, "B N S D"]:
        """The rows in use; a new tensor object each time."""
        return self.buffer.narrow(2, 0, self.held)

    def behind(self, held: int) -> Float[Tensor, "B N Q D"]:
        """Return the rows in use behind the first `held`."""
        return self.buffer.narrow(2, held, self.held - held)

    @property
    def nbytes(self) -> int:
        """Bytes allocated, slack included."""
        return self.buffer.nbytes

    def append(self, new: Float[Tensor, "B N Q D"]) -> None:
        """Write new rows behind those in use."""
        needed = self.held + new.shape[2]
        if needed > self.buffer.shape[2] or self._is_locked:
            self._grow(needed + max(16, needed // 16))
        self.buffer.narrow(2, self.held, new.shape[2]).copy_(new)
        self.held = needed

    def truncate(self, held: int) -> None:
        """Forget all rows but the first `held`."""
        self.held = held

    def select_rows(self, batch: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        self.buffer = self.view.index_select(0, batch.to(self.buffer.device))

    def fits(self, held: int) -> bool:
        """Whether this memory is not much more than so many rows need, and may be written to."""
        slack = self.buffer.shape[2] - held
        return slack <= max(32, held // 8) and not self._is_locked

    @property
    def _is_locked(self) -> bool:
        """A buffer made in inference mode may not be written to outside it."""
        return self.buffer.is_inference() and not is_inference_mode_enabled()

    def _grow(self, capacity: int) -> None:
        batch, heads, _, dim = self.buffer.shape
        buffer = self.buffer.new_empty((batch, heads, capacity, dim))
        buffer[:, :, : self.held] = self.view
        self.buffer = buffer


@attrs.define
class Contents:
    """What a layer holds: rows of keys and values, and the token of each.

    After an uneven eviction a ragged `prefix` holds what was kept, and the rows are those of the
    tokens since. `state` is the running state of the rows; the prefix has its own.
    """

    keys: Rows
    values: Rows
    slots: Slots
    state: Float[Tensor, "B H S *rest"] | None = None
    prefix: Prefix | None = None

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        owned = (self.keys, self.values, self.slots, self.state, self.prefix)
        return sum(each.nbytes for each in owned if each is not None)

    @property
    def row_nbytes(self) -> int:
        """Bytes that key and value of one position take."""
        both = (self.keys.buffer, self.values.buffer)
        return sum(each.shape[3] * each.element_size() for each in both)

    def is_consistent(self, seen: int) -> bool:
        """Whether all that is held fits together, after `seen` tokens."""
        slots, rows = self.slots, (self.keys.view, self.values.view)
        shape = (slots.batch, slots.heads, slots.held)
        fits = all(each.shape[:3] == shape and each.is_floating_point() for each in rows)
        fits = fits and len(slots.lengths) == len(slots.seen) == slots.batch
        fits = fits and max(slots.seen) <= seen and slots.positions.shape == shape
        prefix = self.prefix
        if prefix is None:
            return fits
        count = int(prefix.lengths.sum())
        flat = (prefix.keys, prefix.values, prefix.positions)
        return (
            fits and prefix.lengths.shape == shape[:2] and {len(each) for each in flat} == {count}
        )

    @property
    def held(self) -> int:
        """Slots of the head that holds the most, padding included."""
        return self.slots.held + (0 if self.prefix is None else self.prefix.longest)

    @property
    def mean_held(self) -> float:
        """Slots that a head holds on average, padding included."""
        mean = 0.0 if self.prefix is None else float(self.prefix.lengths.double().mean())
        return self.slots.held + mean

    @property
    def positions(self) -> Int[Tensor, "B N S"]:
        """The position of every slot; -1 is padding, leftmost."""
        if self.prefix is None:
            return self.slots.positions
        padded = self.prefix.padded(self.prefix.positions, -1).long()
        joined = torch.cat([padded, self.slots.positions], -1)
        # Padding of the tail stands behind an empty prefix: it joins that on the left.
        order = (joined >= 0).int().argsort(stable=True, dim=-1)
        return joined.gather(-1, order)

    def joined(self, name: str) -> Float[Tensor, "B N S D"]:
        """Return "keys" or "values" as one dense tensor, shorter heads padded on the left."""
        rows: Float[Tensor, "B N T D"] = getattr(self, name).view
        if self.prefix is None:
            return rows
        return torch.cat([self.prefix.padded(getattr(self.prefix, name)), rows], 2)

    def select_rows(self, batch: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        for owned in (self.keys, self.values, self.slots):
            owned.select_rows(batch)
        if self.state is not None:
            self.state = self.state.index_select(0, batch.to(self.state.device))
        if self.prefix is not None:
            self.prefix = self.prefix.of_rows(batch.tolist())

    def forget_last(self, count: int) -> None:
        """Drop each sequence's last `count` tokens, or raise as `Slots.held_of_last` does."""
        seen = self.slots.seen
        if self.prefix is None:
            self.slots.forget_last(count)
        else:
            self.slots.check_seen(count)
            self.slots.drop_columns(count)
            self.prefix = self.prefix.before([each - count for each in seen])
        self.keys.truncate(self.slots.held)
        self.values.truncate(self.slots.held)
        if self.state is not None:
            self.state = self.state[:, :, : self.slots.held]
