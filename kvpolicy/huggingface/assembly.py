"""From kept pieces back to what a layer holds: dense where heads are equally long, else ragged."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.huggingface.prefix import Prefix
from kvpolicy.huggingface.slots import Slots
from kvpolicy.huggingface.storage import Contents, Rows


@attrs.frozen(kw_only=True, eq=False)
class Piece:
    """What is kept of some rows and heads that keep equally many."""

    keys: Float[Tensor, "b n K D"]
    values: Float[Tensor, "b n K Dv"]
    positions: Int[Tensor, "b n K"]
    state: Float[Tensor, "b h K *rest"] | None = None

    @property
    def length(self) -> int:
        """K, the positions kept."""
        return self.keys.shape[2]

    def alone(self, row: int, head: int) -> Piece:
        """Return the part of one row and head."""
        groups = 0 if self.state is None else self.state.shape[1] // self.keys.shape[1]
        r, h = slice(row, row + 1), slice(head, head + 1)
        state = self.state
        if state is not None:
            state = state[r, head * groups : (head + 1) * groups]
        return Piece(
            keys=self.keys[r, h],
            values=self.values[r, h],
            positions=self.positions[r, h],
            state=state,
        )


def assembled(groups: Sequence[Sequence[Piece]], slots: Slots, *, even: bool) -> Contents:
    """Put the pieces of every group of rows into one batch.

    A group is one piece of all its heads, or a row's pieces, one for each head. They are `even` if
    all heads of a group keep equally many, those of other processes included.
    """
    if even:
        return _dense([_across_heads(pieces) for pieces in groups], slots)
    return _ragged([alone for pieces in groups for alone in _by_row_and_head(pieces)], slots)


def _across_heads(pieces: Sequence[Piece]) -> Piece:
    """Join a row's heads, which keep equally many."""
    if len(pieces) == 1:
        return pieces[0]
    keys, values, positions = (
        torch.cat([getattr(piece, name) for piece in pieces], 1)
        for name in ("keys", "values", "positions")
    )
    return Piece(keys=keys, values=values, positions=positions, state=_joined_states(pieces, 1))


def _joined_states(pieces: Sequence[Piece], dim: int) -> Tensor | None:
    states = [piece.state for piece in pieces if piece.state is not None]
    return torch.cat(states, dim) if states else None


def _dense(rows: Sequence[Piece], slots: Slots) -> Contents:
    """Put rows of unequal length into one batch, right-aligned."""
    longest = max(row.length for row in rows)

    def aligned(name: str, fill: int) -> Tensor:
        parts: list[Tensor] = [getattr(row, name) for row in rows]
        if len(parts) == 1:
            return parts[0]
        shape = (slots.batch, parts[0].shape[1], longest, *parts[0].shape[3:])
        batch, first = parts[0].new_full(shape, fill), 0
        for part in parts:
            batch[first : first + len(part), :, longest - part.shape[2] :] = part
            first += len(part)
        return batch

    slots.replace(
        aligned("positions", -1), [row.length for row in rows for _ in range(len(row.keys))]
    )
    has_state = rows[0].state is not None
    return Contents(
        keys=Rows(aligned("keys", 0)),
        values=Rows(aligned("values", 0)),
        slots=slots,
        state=aligned("state", 0) if has_state else None,
    )


def _by_row_and_head(pieces: Sequence[Piece]) -> list[Piece]:
    if len(pieces) > 1:
        return list(pieces)
    (piece,) = pieces
    batch, heads = piece.keys.shape[:2]
    return [piece.alone(row, head) for row in range(batch) for head in range(heads)]


def _ragged(pieces: Sequence[Piece], slots: Slots) -> Contents:
    """Put every head behind the one before it, and begin an empty tail."""

    def flat(name: str) -> Tensor:
        return torch.cat([getattr(piece, name)[0, 0] for piece in pieces])

    states = [piece.state[0].transpose(0, 1) for piece in pieces if piece.state is not None]
    keys, values, empty = flat("keys"), flat("values"), slots.emptied()
    shape = (slots.batch, slots.heads, 0)
    heads = 0 if not states else slots.heads * states[0].shape[1]
    return Contents(
        keys=Rows(keys.new_empty((*shape, keys.shape[-1]))),
        values=Rows(values.new_empty((*shape, values.shape[-1]))),
        slots=empty,
        state=states[0].new_empty((slots.batch, heads, 0, *states[0].shape[2:]))
        if states
        else None,
        prefix=Prefix(
            keys=keys,
            values=values,
            positions=flat("positions").int(),
            lengths=torch.tensor([piece.length for piece in pieces]).view(shape[:2]),
            state=torch.cat(states) if states else None,
        ),
    )
