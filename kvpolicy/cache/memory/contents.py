"""What one layer holds: rows of keys and values, and the token of each slot."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from kvpolicy.cache.memory.padding import behind_padding, check_some_real, padding_counts
from kvpolicy.cache.memory.ragged import RaggedRows
from kvpolicy.cache.memory.remainder import Remainder, check_held
from kvpolicy.cache.memory.rows import Rows
from kvpolicy.cache.memory.saved import SAVED
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.observation.shard import Exchange


@attrs.define(eq=False)
class Contents:
    """Keys and values of one layer, in position order, real tokens right-aligned.

    After an uneven eviction `ragged` holds the rows that were kept, and `keys` and `values` are
    those of the tokens since. `state` is the scorer's running state for `keys`; `ragged` has its
    own. `remainder` stands for what was evicted, if the compactor keeps one.
    """

    keys: Rows = attrs.field(metadata=SAVED)
    values: Rows = attrs.field(metadata=SAVED)
    slots: Slots = attrs.field(metadata=SAVED)
    state: Float[Tensor, "B H S *rest"] | None = attrs.field(metadata=SAVED, default=None)
    ragged: RaggedRows | None = attrs.field(metadata=SAVED, default=None)
    remainder: Remainder | None = attrs.field(metadata=SAVED, default=None)

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
        owned = (self.keys, self.values, self.slots, self.state, self.ragged, self.remainder)
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
        if self.remainder is not None:
            widths = (rows[0].shape[3], rows[1].shape[3])
            fits = fits and self.remainder.fits(shape[:2], widths)
        return fits and (self.ragged is None or self.ragged.is_consistent(shape[:2]))

    @property
    def is_plain(self) -> bool:
        """Whether a model's own attention attends to all that is held: to dense rows alone."""
        return self.ragged is None and self.remainder is None

    @property
    def biased(self) -> str | None:
        """What attention adds a bias for, in words; None if it adds none."""
        if self.remainder is not None:
            return "a remainder"
        has_bias = self.ragged is not None and self.ragged.bias is not None
        return "rows with a bias" if has_bias else None

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
        if self.remainder is not None:
            self.remainder = self.remainder.select_rows(batch)

    def check_crop(self, count: int, exchange: Exchange | None = None) -> None:
        """Raise CacheStateError if `forget_last` would: here, or in another process.

        A remainder cannot give back what it stands for.
        """
        if self.remainder is not None:
            self.slots.check_seen(count)
            check_held(self.positions, self.slots.seen, count, exchange)
        elif self.ragged is not None:
            self.slots.check_seen(count)
        else:
            self.slots.held_of_last(count, exchange)

    def forget_last(self, count: int) -> None:
        """Drop each sequence's last `count` tokens.

        Raises CacheStateError as `check_crop` does.
        """
        if not self.is_plain:
            self.check_crop(count)
        seen = self.slots.seen
        if self.ragged is None:
            self.slots.forget_last(count)
        else:
            self.slots.drop_columns(count)
            self.ragged = self.ragged.before([each - count for each in seen])
        self.keys.truncate(self.slots.held)
        self.values.truncate(self.slots.held)
        if self.state is not None:
            self.state = self.state[:, :, : self.slots.held]
