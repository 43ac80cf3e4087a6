"""Views of a layer for parts: without padding; rows or heads that differ are shown alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.cache.attention.keys import AttendedKeys
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.observation.note import Notes
from kvpolicy.observation.shard import Shard


@attrs.frozen(kw_only=True, eq=False)
class View:
    """Rows and heads of a layer that hold equally many tokens and have seen equally many.

    `keys` are the stored keys, `attended` the keys that attention sees: they differ in rotary
    position where slots are renumbered. Where a layer holds latents, `keys` and `values` have one
    head for all, and `attended` and `shown_values` have all heads. Where the heads of a row are
    uneven, each head has a view of its own, and `held_by_head` says how many tokens each head of
    the row holds, heads of other processes included. `renumbered` is the slot behind the newest
    token where slots are renumbered.
    """

    rows: slice
    heads: slice
    keys: Float[Tensor, "b n S D"]
    attended: Float[Tensor, "b _ S _"]
    values: Float[Tensor, "b n S Dv"]
    positions: Int[Tensor, "b n S"]
    seen: int
    newest: int
    """How many of the tokens seen belong to the newest turn; they are all held."""
    state: Float[Tensor, "b h S *rest"] | None = None
    noted: Notes = None
    held_by_head: Sequence[int] = ()
    renumbered: int | None = None
    shown_values: Float[Tensor, "b _ S _"] | None = None
    """The values that attention sees, where they are not those that are stored."""
    bias: Float[Tensor, "b n S"] | None = None
    """What attention adds to the logits of rows, where an eviction gave them a bias."""

    def row(self, index: int) -> View:
        """Return the view of one of the rows."""
        one, first = slice(index, index + 1), self.rows.start + index
        shown = self.shown_values
        return attrs.evolve(
            self,
            rows=slice(first, first + 1),
            keys=self.keys[one],
            attended=self.attended[one],
            values=self.values[one],
            positions=self.positions[one],
            state=None if self.state is None else self.state[one],
            noted=None if self.noted is None else self.noted[one],
            shown_values=None if shown is None else shown[one],
            bias=None if self.bias is None else self.bias[one],
        )


def views_of(
    contents: Contents, keys: AttendedKeys, *, shard: Shard | None = None
) -> list[list[View]]:
    """Return a layer in groups of rows; each group is one view, or one view for each head.

    Neighbouring rows that hold and have seen equally many tokens are one group. The heads of a row
    get views of their own if they are uneven, whatever the other rows hold.
    """
    if contents.ragged is not None:
        rows = _views_of_heads(contents, keys)
        held = _held_by_row(rows, shard)
        return [_joined_if_even(*each) for each in zip(rows, held, strict=True)]
    slots = contents.slots
    if slots.batch == 1 and slots.lengths[0] == slots.held:
        return [[_view_of_all(contents, keys)]]
    return [
        [_view_of_rows(contents, keys, rows, slots.held - slots.lengths[rows.start])]
        for rows in _alike(slots)
    ]


def _alike(slots: Slots) -> Iterator[slice]:
    """Yield the rows that are shown together."""
    both, first = list(zip(slots.lengths, slots.seen, slots.settled, strict=True)), 0
    for row in range(1, slots.batch + 1):
        if row == slots.batch or both[row] != both[first]:
            yield slice(first, row)
            first = row


def _view_of_all(contents: Contents, keys: AttendedKeys) -> View:
    """Return the view of one row without padding: all tables as they are."""
    slots = contents.slots
    return View(
        rows=slice(0, 1),
        heads=slice(0, slots.heads),
        keys=contents.keys.view,
        attended=keys.dense,
        values=contents.values.view,
        positions=slots.positions,
        seen=slots.seen[0],
        newest=slots.seen[0] - slots.settled[0],
        state=contents.state,
        noted=slots.noted,
        renumbered=keys.renumbered,
        shown_values=keys.values,
    )


def _view_of_rows(contents: Contents, keys: AttendedKeys, rows: slice, first: int) -> View:
    state, slots = contents.state, contents.slots
    return View(
        rows=rows,
        heads=slice(0, contents.slots.heads),
        keys=contents.keys.view[rows, :, first:],
        attended=keys.dense[rows, :, first:],
        values=contents.values.view[rows, :, first:],
        positions=contents.slots.positions[rows, :, first:],
        seen=slots.seen[rows.start],
        newest=slots.seen[rows.start] - slots.settled[rows.start],
        state=None if state is None else state[rows, :, first:],
        noted=None if slots.noted is None else slots.noted[rows],
        renumbered=keys.renumbered,
        shown_values=None if keys.values is None else keys.values[rows, :, first:],
    )


def _held_by_row(rows: Sequence[Sequence[View]], shard: Shard | None) -> list[list[int]]:
    """Return how many tokens each head of the layer holds, by row."""
    held = [[view.keys.shape[2] for view in heads] for heads in rows]
    if shard is None:
        return held
    counts = torch.tensor(held, device="cpu")
    joined: list[list[int]] = torch.cat(list(shard.exchange(counts)), 1).tolist()
    return joined


def _joined_if_even(heads: Sequence[View], held: Sequence[int]) -> list[View]:
    """Join the heads of a row that hold equally many: a row alone in its batch is shown so."""
    if len(set(held)) > 1:
        return [attrs.evolve(view, held_by_head=held) for view in heads]
    keys, attended, values, positions = (
        torch.cat([getattr(view, name) for view in heads], 1)
        for name in ("keys", "attended", "values", "positions")
    )
    states = [view.state for view in heads if view.state is not None]
    biases = [view.bias for view in heads if view.bias is not None]
    return [
        View(
            rows=heads[0].rows,
            heads=slice(0, len(heads)),
            keys=keys,
            attended=attended,
            values=values,
            positions=positions,
            seen=heads[0].seen,
            newest=heads[0].newest,
            state=torch.cat(states, 1) if states else None,
            bias=torch.cat(biases, 1) if biases else None,
            renumbered=heads[0].renumbered,
        )
    ]


def _views_of_heads(contents: Contents, keys: AttendedKeys) -> list[list[View]]:
    """Put every head's ragged rows before its dense rows."""
    ragged, slots = contents.ragged, contents.slots
    if ragged is None or keys.ragged is None:
        raise TypeError("only a layer with ragged rows is shown head by head")
    tails = {
        "keys": (ragged.keys, contents.keys.view),
        "attended": (keys.ragged, keys.dense),
        "values": (ragged.values, contents.values.view),
        "positions": (ragged.positions.long(), slots.positions),
    }
    if ragged.bias is not None:
        none = ragged.bias.new_zeros(()).expand(slots.batch, slots.heads, slots.held)
        tails["bias"] = (ragged.bias, none)
    groups = 0 if contents.state is None else contents.state.shape[1] // slots.heads
    found: list[list[View]] = [[] for _ in range(slots.batch)]
    for row, head, rows in ragged.heads():
        first, state = slots.held - slots.lengths[row], None
        tables: dict[str, Any] = {
            name: torch.cat([flat[rows], dense[row, head, first:]])[None, None]
            for name, (flat, dense) in tails.items()
        }
        if contents.state is not None and ragged.state is not None:
            tail = contents.state[row, head * groups : (head + 1) * groups, first:]
            state = torch.cat([ragged.state[rows].transpose(0, 1), tail], dim=1)[None]
        found[row].append(
            View(
                rows=slice(row, row + 1),
                heads=slice(head, head + 1),
                seen=slots.seen[row],
                newest=slots.seen[row] - slots.settled[row],
                state=state,
                renumbered=keys.renumbered,
                **tables,
            )
        )
    return found
