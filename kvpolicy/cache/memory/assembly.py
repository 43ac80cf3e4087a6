"""Puts kept pieces together: dense rows if all heads hold equally many, else ragged rows."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.ragged import RaggedRows
from kvpolicy.cache.memory.remainder import Remainder, joined
from kvpolicy.cache.memory.rows import Rows
from kvpolicy.cache.memory.slots import Slots


@attrs.frozen(kw_only=True, eq=False)
class Piece:
    """What some rows and heads keep: the first `lengths` of K positions, or all K of them."""

    keys: Float[Tensor, "b n K D"]
    values: Float[Tensor, "b n K Dv"]
    positions: Int[Tensor, "b n K"]
    state: Float[Tensor, "b h K *rest"] | None = None
    lengths: Int[Tensor, "b n"] | None = None
    """On the CPU; None where all keep K."""
    bias: Float[Tensor, "b n K"] | None = None
    """What attention adds to the logits of these rows; None adds nothing."""
    evicted: Remainder | None = None
    """What stands for the positions that are not kept, if the compactor keeps a remainder."""

    @property
    def longest(self) -> int:
        """K, the most positions that a head keeps."""
        return self.keys.shape[2]

    @property
    def kept(self) -> Int[Tensor, "b n"]:
        """How many positions each row and head keeps."""
        if self.lengths is not None:
            return self.lengths
        shape = self.keys.shape[:2]
        return torch.full(shape, self.longest, dtype=torch.long, device="cpu")

    def flat(self) -> dict[str, Tensor]:
        """Return the kept rows, each head's behind those of the head before it.

        The rows of the state are [R, G, *rest], with the G query heads that read a row.
        """
        tables = {"keys": self.keys, "values": self.values, "positions": self.positions}
        if self.state is not None:
            by_group = self.state.unflatten(1, (self.keys.shape[1], -1))
            tables["state"] = by_group.transpose(2, 3)
        if self.bias is not None:
            tables["bias"] = self.bias
        rows = None
        if self.lengths is not None:
            kept = (
                torch.arange(self.longest, dtype=torch.long, device="cpu") < self.lengths[..., None]
            )
            rows = kept.flatten().nonzero()[:, 0].to(self.keys.device, non_blocking=True)
        joined = {name: table.flatten(0, 2) for name, table in tables.items()}
        return {name: flat if rows is None else flat[rows] for name, flat in joined.items()}


def assembled(groups: Sequence[Sequence[Piece]], slots: Slots, *, even: bool) -> Contents:
    """Put the pieces of every group of rows into one batch; its remainder stays to be set.

    Rows with a bias are ragged, as only attention over uneven heads takes one.

    A group is one piece with all heads, or one piece for each head of one row. `even` says that all
    heads keep equally many positions, heads of other processes included.
    """
    if even and all(piece.bias is None for pieces in groups for piece in pieces):
        return _dense([_across_heads(pieces) for pieces in groups], slots)
    return _ragged([piece for pieces in groups for piece in pieces], slots)


def _across_heads(pieces: Sequence[Piece]) -> Piece:
    """Join the heads of a row, which keep equally many positions."""
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
    longest = max(row.longest for row in rows)

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
        aligned("positions", -1), [row.longest for row in rows for _ in range(len(row.keys))]
    )
    has_state = rows[0].state is not None
    return Contents(
        keys=Rows(aligned("keys", 0)),
        values=Rows(aligned("values", 0)),
        slots=slots,
        state=aligned("state", 0) if has_state else None,
    )


def _behind(tables: Sequence[Tensor]) -> Tensor:
    """Return the rows of each table behind those of the one before it."""
    return tables[0] if len(tables) == 1 else torch.cat(list(tables))


def _ragged(pieces: Sequence[Piece], slots: Slots) -> Contents:
    """Put every head behind the head before it, and begin with no dense rows."""
    flat = [piece.flat() for piece in pieces]
    keys, values, positions = (
        _behind([tables[name] for tables in flat]) for name in ("keys", "values", "positions")
    )
    states = [tables["state"] for tables in flat if "state" in tables]
    state = _behind(states) if states else None
    biases = [_bias_of(tables) for tables in flat] if any("bias" in each for each in flat) else []
    shape = (slots.batch, slots.heads, 0)
    heads = 0 if state is None else slots.heads * state.shape[1]
    return Contents(
        keys=Rows(keys.new_empty((*shape, keys.shape[-1]))),
        values=Rows(values.new_empty((*shape, values.shape[-1]))),
        slots=slots.emptied(),
        state=None if state is None else state.new_empty((shape[0], heads, 0, *state.shape[2:])),
        ragged=RaggedRows(
            keys=keys,
            values=values,
            positions=positions.int(),
            lengths=torch.cat([piece.kept.flatten() for piece in pieces]).view(shape[:2]),
            state=state,
            bias=_behind(biases) if biases else None,
        ),
    )


def _bias_of(tables: dict[str, Tensor]) -> Float[Tensor, " R"]:
    """Return the biases of rows; those of rows without are 0."""
    dtype = torch.promote_types(tables["keys"].dtype, torch.float32)
    found = tables.get("bias")
    return tables["keys"].new_zeros(len(tables["keys"]), dtype=dtype) if found is None else found


def remainder_of(before: Remainder | None, groups: Sequence[Sequence[Piece]]) -> Remainder | None:
    """Return what stands for all that was evicted: `before`, and what the pieces say of now."""
    pieces = [piece for group in groups for piece in group]
    known = next((piece.evicted for piece in pieces if piece.evicted is not None), None)
    if known is None:
        return before
    now = joined([joined([_evicted(piece, known) for piece in group], 1) for group in groups], 0)
    return now if before is None else before.with_more(now)


def _evicted(piece: Piece, like: Remainder) -> Remainder:
    """Return what a piece says was evicted; a piece that keeps all says nothing."""
    if piece.evicted is not None:
        return piece.evicted
    heads, (keys, values) = piece.keys.shape[:2], (like.keys, like.values)
    return Remainder(
        keys=keys.new_zeros((*heads, keys.shape[-1])),
        values=values.new_zeros((*heads, values.shape[-1])),
        counts=like.counts.new_zeros(heads),
    )
