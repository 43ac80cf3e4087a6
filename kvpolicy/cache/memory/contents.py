"""What one layer holds: rows of keys and values with room to grow, and the token of each slot."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, is_inference_mode_enabled

from kvpolicy.cache.memory.padding import behind_padding, check_some_real, padding_counts
from kvpolicy.cache.memory.ragged import RaggedRows
from kvpolicy.cache.memory.saved import SAVED
from kvpolicy.cache.memory.slots import Slots


def _owned(first: Shaped[Tensor, "B N S D"]) -> Shaped[Tensor, "B N S D"]:
    first = first.contiguous()
    # A view would keep alive the memory that it is a view of.
    return first if first.untyped_storage().nbytes() == first.nbytes else first.clone()


@attrs.define(eq=False)
class Rows:
    """A buffer [B, N, C, D] whose first `held` rows are in use.

    The first rows are taken over as they are, without slack. A full buffer grows by 1/16 of its
    rows, and by at least 16. See `fits` for how much slack is allowed after rows were removed.
    """

    buffer: Shaped[Tensor, "B N C D"] = attrs.field(converter=_owned)
    held: int = attrs.field(init=False)

    @held.default
    def _all_of_the_first(self) -> int:
        return self.buffer.shape[2]

    @property
    def view(self) -> Shaped[Tensor, "B N S D"]:
        """The rows in use; a new tensor object each time."""
        return self.buffer.narrow(2, 0, self.held)

    def behind(self, held: int) -> Shaped[Tensor, "B N Q D"]:
        """Return the rows in use behind the first `held`."""
        return self.buffer.narrow(2, held, self.held - held)

    @property
    def nbytes(self) -> int:
        """Bytes allocated, slack included."""
        return self.buffer.nbytes

    def append(self, new: Shaped[Tensor, "B N Q D"]) -> None:
        """Write new rows behind those in use.

        Rows that need gradients are joined to new memory: a backward pass needs the old rows.
        """
        needed = self.held + new.shape[2]
        if self.buffer.requires_grad or new.requires_grad:
            self.buffer, self.held = torch.cat([self.view, new], 2), needed
            return
        if needed > self.buffer.shape[2] or self._is_locked:
            self._grow(needed + max(16, needed // 16))
        self.buffer.narrow(2, self.held, new.shape[2]).copy_(new)
        self.held = needed

    def move(self, source: Int[Tensor, "B S"]) -> None:
        """Let each row in use take the place that `source` says, in new memory."""
        places = source[:, None, :, None].to(self.buffer.device)
        self.buffer = self.view.gather(
            2, places.expand(*self.view.shape[:2], -1, self.view.shape[3])
        )

    def truncate(self, held: int) -> None:
        """Forget all rows but the first `held`."""
        self.held = held

    def select_rows(self, batch: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        self.buffer = self.view.index_select(0, batch.to(self.buffer.device))

    def fits(self, held: int) -> bool:
        """Whether the buffer may keep `held` rows: its slack is small and it may be written to.

        Small is at most an eighth of `held`, or 32 rows.
        """
        slack = self.buffer.shape[2] - held
        if self.buffer.requires_grad:
            return False
        return slack <= max(32, held // 8) and not self._is_locked

    @property
    def _is_locked(self) -> bool:
        """Whether the buffer was made in inference mode, so that it may not be written to now."""
        return self.buffer.is_inference() and not is_inference_mode_enabled()

    def _grow(self, capacity: int) -> None:
        batch, heads, _, dim = self.buffer.shape
        buffer = torch.empty(
            (batch, heads, capacity, dim), dtype=self.buffer.dtype, device=self.buffer.device
        )
        buffer[:, :, : self.held] = self.view
        self.buffer = buffer


@attrs.define(eq=False)
class Contents:
    """Keys and values of one layer, in position order, real tokens right-aligned.

    After an uneven eviction `ragged` holds the rows that were kept, and `keys` and `values` are
    those of the tokens since. `state` is the scorer's running state for `keys`; `ragged` has its
    own.
    """

    keys: Rows = attrs.field(metadata=SAVED)
    values: Rows = attrs.field(metadata=SAVED)
    slots: Slots = attrs.field(metadata=SAVED)
    state: Float[Tensor, "B H S *rest"] | None = attrs.field(metadata=SAVED, default=None)
    ragged: RaggedRows | None = attrs.field(metadata=SAVED, default=None)

    @classmethod
    def of(cls, keys: Float[Tensor, "B N S D"], values: Float[Tensor, "B N S Dv"]) -> Contents:
        """Hold the first tokens of a conversation.

        >>> Contents.of(torch.ones(1, 2, 5, 8), torch.ones(1, 2, 5, 8)).held
        5
        """
        slots = Slots.empty(keys.shape[0], keys.shape[1], keys.device)
        slots.append(keys.shape[2])
        return cls(Rows(keys), Rows(values), slots)

    def append(self, keys: Float[Tensor, "B N Q D"], values: Float[Tensor, "B N Q Dv"]) -> None:
        """Add the keys and values of new tokens."""
        self.keys.append(keys)
        self.values.append(values)
        self.slots.append(keys.shape[2])

    def mark_padding(
        self, real: Bool[Tensor, "B Q"], first: int, pads: list[int] | None = None
    ) -> bool:
        """Correct the tokens added last: some are padding. Return whether older rows have moved.

        Padding that stands behind older tokens of its row moves before them, in new memory. The new
        tokens begin at column `first` of the batch, padding included. `pads` are the counts of
        padding where they are known. Raises InvalidValueError for padding behind a new token, and
        for a row without a new token.
        """
        count, pads = real.shape[1], padding_counts(real) if pads is None else pads
        gap = any(pad and seen > count for pad, seen in zip(pads, self.slots.seen, strict=True))
        if gap:
            check_some_real(pads, count)
        self.slots.mark_padding(pads, count)
        if not gap:
            return False
        held = self.slots.held
        source = behind_padding(pads, held, count, self.slots.device)
        self.slots.move_padding(source, real, pads, first)
        self.keys.move(source)
        self.values.move(source)
        if self.state is not None:
            new = self.state.new_zeros((*self.state.shape[:2], count, *self.state.shape[3:]))
            rows = source[:, None].expand(-1, self.state.shape[1], -1)
            rows = rows.view(*rows.shape, *[1] * (self.state.dim() - 3))
            rows = rows.expand(*rows.shape[:3], *self.state.shape[3:])
            self.state = torch.cat([self.state, new], 2).gather(2, rows)
        return True

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        owned = (self.keys, self.values, self.slots, self.state, self.ragged)
        return sum(each.nbytes for each in owned if each is not None)

    @property
    def row_nbytes(self) -> int:
        """Bytes of the key and the value of one position."""
        both = (self.keys.buffer, self.values.buffer)
        return sum(each.shape[3] * each.element_size() for each in both)

    def is_consistent(self, seen: int) -> bool:
        """Whether keys, values, positions and lengths fit one another, after `seen` tokens."""
        slots, rows = self.slots, (self.keys.view, self.values.view)
        shape = (slots.batch, slots.heads, slots.held)
        fits = all(each.shape[:3] == shape for each in rows)
        fits = fits and len(slots.lengths) == len(slots.seen) == slots.batch
        fits = fits and max(slots.seen) <= seen and slots.positions.shape == shape
        if self.ragged is None:
            return fits
        return fits and self.ragged.is_consistent(shape[:2])

    @property
    def held(self) -> int:
        """Slots of the head that holds the most, padding included."""
        return self.slots.held + (0 if self.ragged is None else self.ragged.longest)

    @property
    def mean_held(self) -> float:
        """Slots of a head on average, padding included."""
        mean = 0.0 if self.ragged is None else float(self.ragged.lengths.double().mean())
        return self.slots.held + mean

    @property
    def positions(self) -> Int[Tensor, "B N S"]:
        """The position of every slot; -1 is padding, leftmost."""
        if self.ragged is None:
            return self.slots.positions
        padded = self.ragged.padded(self.ragged.positions, -1).long()
        joined = torch.cat([padded, self.slots.positions], -1)
        # A row without ragged rows has its padding behind them: it moves to the left.
        order = (joined >= 0).int().argsort(stable=True, dim=-1)
        return joined.gather(-1, order)

    def joined(self, name: str) -> Shaped[Tensor, "B N S D"]:
        """Return "keys" or "values" as one dense tensor, shorter heads padded on the left."""
        rows: Shaped[Tensor, "B N T D"] = getattr(self, name).view
        if self.ragged is None:
            return rows
        return torch.cat([self.ragged.padded(getattr(self.ragged, name)), rows], 2)

    def select_rows(self, batch: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        for owned in (self.keys, self.values, self.slots):
            owned.select_rows(batch)
        if self.state is not None:
            self.state = self.state.index_select(0, batch.to(self.state.device))
        if self.ragged is not None:
            self.ragged = self.ragged.of_rows(batch.tolist())

    def forget_last(self, count: int) -> None:
        """Drop each sequence's last `count` tokens.

        Raises CacheStateError as `Slots.held_of_last` does.
        """
        seen = self.slots.seen
        if self.ragged is None:
            self.slots.forget_last(count)
        else:
            self.slots.check_seen(count)
            self.slots.drop_columns(count)
            self.ragged = self.ragged.before([each - count for each in seen])
        self.keys.truncate(self.slots.held)
        self.values.truncate(self.slots.held)
        if self.state is not None:
            self.state = self.state[:, :, : self.slots.held]
