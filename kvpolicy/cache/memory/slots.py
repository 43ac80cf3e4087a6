"""Which token each slot of a layer holds: true positions, padding, and how they move."""

from __future__ import annotations

import copy

import attrs
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kvpolicy.cache.memory.positions import joined
from kvpolicy.cache.memory.saved import SAVED
from kvpolicy.cache.memory.sent import sent
from kvpolicy.errors import CacheStateError
from kvpolicy.observation.note import Note
from kvpolicy.observation.shard import Exchange


@attrs.define(eq=False)
class Slots:
    """The position of every slot of one layer.

    Position p is the p-th real token of its row; padding is -1 and stands leftmost. `known` has
    the positions of the first slots. The slots behind them hold the last tokens in order, so that
    they need no tensor.
    """

    batch: int = attrs.field(metadata=SAVED)
    heads: int = attrs.field(metadata=SAVED)
    held: int = attrs.field(metadata=SAVED)
    """Slots in use."""
    lengths: list[int] = attrs.field(metadata=SAVED)
    """Real tokens held, for each row."""
    seen: list[int] = attrs.field(metadata=SAVED)
    """Real tokens seen, for each row."""
    moved: int = attrs.field(metadata=SAVED)
    """How many of the first slots may have a gap before them, because a token was evicted."""
    known: Int[Tensor, "B n S"] = attrs.field(metadata=SAVED)
    offsets: list[int] = attrs.field(metadata=SAVED)
    """By how much a row's rotary positions exceed its token positions, where that is known."""

    settled: list[int] = attrs.field(metadata=SAVED)
    """Real tokens of each row before its newest turn, where a budget is for each turn; else 0."""
    columns: Bool[Tensor, "B T"] | None = attrs.field(metadata=SAVED, default=None)
    """Which of the first T tokens were real; None where padding came before all others only."""
    noted: list[Note] | None = None
    """What the scorer noted of each row beside its running state; None if nothing is known."""
    _joined: tuple[Tensor, int, list[int], Tensor] | None = attrs.field(
        init=False, default=None, repr=False
    )
    """`known`, `held`, `seen` and the positions that they gave: a forward asks more than once."""

    @offsets.default
    @settled.default
    def _none(self) -> list[int]:
        return [0] * self.batch

    @classmethod
    def empty(cls, batch: int, heads: int, device: torch.device) -> Slots:
        """Return no slots for `batch` rows."""
        known = torch.empty((batch, 1, 0), dtype=torch.int32, device=device)
        return cls(batch, heads, 0, [0] * batch, [0] * batch, 0, known)

    @property
    def nbytes(self) -> int:
        """Bytes that the positions take."""
        return self.known.nbytes + (0 if self.columns is None else self.columns.nbytes)

    @property
    def device(self) -> torch.device:
        """Where positions are, and attention is computed."""
        return self.known.device

    def copied(self) -> Slots:
        """Return the same slots, to go their own way from here."""
        twin = copy.copy(self)
        twin.lengths, twin.seen = list(self.lengths), list(self.seen)
        twin.offsets, twin.settled = list(self.offsets), list(self.settled)
        return twin

    @property
    def is_padded(self) -> bool:
        """Whether some row holds fewer real tokens than there are slots."""
        return any(length != self.held for length in self.lengths)

    @property
    def newest(self) -> list[int]:
        """Real tokens of each row in its newest turn."""
        return [seen - old for seen, old in zip(self.seen, self.settled, strict=True)]

    def settle(self) -> None:
        """Let a new turn begin behind the tokens that were seen."""
        self.settled = list(self.seen)

    @property
    def follow_the_count(self) -> bool:
        """Whether a mask made from token counts alone says which slots are padding."""
        return self.columns is None and all(
            length == min(self.held, seen)
            for length, seen in zip(self.lengths, self.seen, strict=True)
        )

    @property
    def positions(self) -> Int[Tensor, "B N S"]:
        """The position of every slot; -1 is padding, leftmost."""
        known, held, seen = self.known, self.held, self.seen
        last = self._joined
        if last is None or last[0] is not known or last[1:3] != (held, seen):
            last = (known, held, seen, joined(known, held, seen))
            self._joined = last
        return last[3].expand(-1, self.heads, -1)

    def append(self, count: int) -> None:
        """Add slots of real tokens."""
        self.held += count
        self.lengths = [length + count for length in self.lengths]
        self.seen = [seen + count for seen in self.seen]

    def read(self, count: int) -> Bool[Tensor, "B T"] | None:
        """Return which of the first `count` tokens were real; None if padding came first only."""
        if self.columns is None:
            return None
        later = count - self.columns.shape[1]
        return torch.nn.functional.pad(self.columns[:, :count], (0, max(0, later)), value=True)

    def mark_padding(self, pads: list[int], count: int) -> None:
        """Correct the `count` slots added last: each row begins with `pads` of padding."""
        slots, same = torch.arange(count, device=self.known.device), len(set(pads)) == 1
        padding = pads[0] if same else sent(pads, self.known.device)[:, None, None]
        if self.held == count and set(self.seen) == {count}:
            positions = (slots - padding).clamp(min=-1).expand(self.batch, 1, -1)
        else:
            positions = self.positions[:, : self.known.shape[1]].clone()
            new = positions[..., -count:] - padding
            positions[..., -count:] = new.masked_fill(slots < padding, -1)
        self.known = positions.int()
        self.lengths = [length - pad for length, pad in zip(self.lengths, pads, strict=True)]
        self.seen = [seen - pad for seen, pad in zip(self.seen, pads, strict=True)]

    def move_padding(
        self, source: Int[Tensor, "B S"], real: Bool[Tensor, "B Q"], pads: list[int], first: int
    ) -> None:
        """Take padding that was marked to the left of older tokens, and remember its columns.

        The new tokens begin at column `first` of the batch, padding included.
        """
        before = self.read(first)
        if before is None:
            new = [real.shape[1] - pad for pad in pads]
            older = [first - seen + each for seen, each in zip(self.seen, new, strict=True)]
            columns = torch.arange(first, device=self.device)
            before = columns >= torch.tensor(older, device=self.device)[:, None]
        self.columns = torch.cat([before, real.to(self.device)], 1)
        rows = source[:, None].expand(-1, self.known.shape[1], -1)
        self.known = self.known.gather(2, rows)
        self.moved = min(self.held, self.moved + max(pads)) if self.moved else 0

    def replace(self, positions: Int[Tensor, "B N K"], lengths: list[int]) -> None:
        """Hold other slots from now on: what an eviction has left."""
        self._shorten(positions, lengths)
        self.moved = self.held

    def _shorten(self, positions: Int[Tensor, "B N K"], lengths: list[int]) -> None:
        self.known, self._joined = positions.int(), None
        self.held = positions.shape[-1]
        self.moved = min(self.moved, self.held)
        self.lengths = lengths

    def emptied(self) -> Slots:
        """Return slots for what comes next, where all that is held has gone elsewhere."""
        empty = Slots.empty(self.batch, self.heads, self.known.device)
        empty.seen, empty.offsets = list(self.seen), list(self.offsets)
        empty.settled, empty.columns = list(self.settled), self.columns
        return empty

    def drop_columns(self, count: int) -> None:
        """Forget the last `count` tokens of slots that hold the newest tokens without a gap."""
        self._forget_columns(count)
        dropped = min(count, self.held)
        kept = self.positions[..., : self.held - dropped]
        self._shorten(kept, [max(0, length - dropped) for length in self.lengths])
        self._forget_seen(count)

    def _forget_seen(self, count: int) -> None:
        self.seen = [seen - count for seen in self.seen]
        self.settled = [min(each) for each in zip(self.settled, self.seen, strict=True)]
        self.noted = None

    def held_of_last(self, count: int, exchange: Exchange | None = None) -> int:
        """Return how many of each row's last `count` tokens are held; they are rightmost.

        Raises CacheStateError where that is not the same number of slots everywhere.
        """
        self.check_seen(count)
        positions = self.positions
        start = sent([seen - count for seen in self.seen], positions.device)
        held = (positions >= start[:, None, None]).sum(-1)
        if exchange is not None:
            held = torch.cat(list(exchange(held)), 1)
        low, high = (int(end) for end in held.aminmax())
        if low != high:
            raise CacheStateError(
                f"cannot crop {count} tokens: {low} to {high} of them are held, depending on head "
                "and row, because an eviction came after them. Keep at least as many recent tokens "
                "(recent=...), or start over with cache.reset()."
            )
        return high

    def check_seen(self, count: int) -> None:
        """Raise CacheStateError unless every row has seen `count` tokens."""
        if count > min(self.seen):
            raise CacheStateError(
                f"cannot crop {count} tokens: a row of this batch has only {min(self.seen)}. Crop "
                "fewer, or start over with cache.reset()."
            )
        columns = self._all_columns()
        if columns is not None and not bool(columns[:, -count:].all()):
            raise CacheStateError(
                f"cannot crop {count} tokens: some of them are padding before a question. Crop "
                "fewer, or start over with cache.reset()."
            )

    def _all_columns(self) -> Bool[Tensor, "B T"] | None:
        if self.columns is None:
            return None
        return self.read(self.columns.shape[1] + self.seen[0] - int(self.columns[0].sum()))

    def _forget_columns(self, count: int) -> None:
        columns = self._all_columns()
        self.columns = None if columns is None else columns[:, : columns.shape[1] - count]

    def forget_last(self, count: int) -> None:
        """Drop the slots of each row's last `count` tokens, or raise as `held_of_last` does."""
        dropped = self.held_of_last(count)
        self._forget_columns(count)
        kept = self.positions[..., : self.held - dropped]
        self._shorten(kept, [length - dropped for length in self.lengths])
        self._forget_seen(count)

    def select_rows(self, batch: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        rows = batch.tolist()
        self.known = self.known.index_select(0, batch.to(self.known.device))
        if self.columns is not None:
            self.columns = self.columns.index_select(0, batch.to(self.columns.device))
        self.batch = len(rows)
        for name in ("lengths", "seen", "offsets", "settled"):
            setattr(self, name, [getattr(self, name)[row] for row in rows])
        self.noted = None if self.noted is None else [self.noted[row] for row in rows]
