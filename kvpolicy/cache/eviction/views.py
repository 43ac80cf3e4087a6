"""A layer as parts are shown it: without padding, so row by row or head by head where needed."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.observation.shard import Shard


@attrs.frozen(kw_only=True, eq=False)
class View:
    """Rows and heads of a layer that hold equally many tokens and have seen as many.

    `keys` are stored ones, `turned` those that attention sees: they differ in rotary position where
    slots are renumbered. Where the heads of a row differ, `of_layer` says what each of them holds,
    those of other processes included, and this is one of them.
    """

    rows: slice
    heads: slice
    keys: Float[Tensor, "b n S D"]
    turned: Float[Tensor, "b n S D"]
    values: Float[Tensor, "b n S Dv"]
    positions: Int[Tensor, "b n S"]
    seen: int
    state: Float[Tensor, "b h S *rest"] | None = None
    of_layer: Sequence[int] = ()

    @property
    def length(self) -> int:
        """Tokens that each of the heads holds."""
        return self.keys.shape[2]


@attrs.frozen(kw_only=True, eq=False)
class Turned:
    """The keys of a layer as attention sees them: dense ones, and those of an uneven prefix."""

    keys: Float[Tensor, "B N T D"]
    prefix: Float[Tensor, "R D"] | None = None


def views_of(
    contents: Contents, turned: Turned, *, by_row: bool = False, shard: Shard | None = None
) -> list[list[View]]:
    """Return a layer in groups of rows, each as one view or as a view for every head.

    Rows that differ in what they hold or have seen stand alone, or all of them with `by_row`. Heads
    stand alone where those of their row differ, whatever the rest of the batch holds.
    """
    if contents.prefix is not None:
        rows = _heads_of(contents, turned)
        held = _held_by_row(rows, shard)
        return [_together_or_apart(*each) for each in zip(rows, held, strict=True)]
    slots = contents.slots
    if not by_row and not slots.is_padded and len(set(slots.seen)) == 1:
        return [[_rows(contents, turned, slice(0, slots.batch), 0, slots.seen[0])]]
    return [
        [_rows(contents, turned, slice(row, row + 1), slots.held - length, seen)]
        for row, (length, seen) in enumerate(zip(slots.lengths, slots.seen, strict=True))
    ]


def _rows(contents: Contents, turned: Turned, rows: slice, first: int, seen: int) -> View:
    state = contents.state
    return View(
        rows=rows,
        heads=slice(0, contents.slots.heads),
        keys=contents.keys.view[rows, :, first:],
        turned=turned.keys[rows, :, first:],
        values=contents.values.view[rows, :, first:],
        positions=contents.slots.positions[rows, :, first:],
        seen=seen,
        state=None if state is None else state[rows, :, first:],
    )


def _held_by_row(rows: Sequence[Sequence[View]], shard: Shard | None) -> list[list[int]]:
    """Return what each head of the layer holds, those of other processes included, by row."""
    held = [[view.length for view in heads] for heads in rows]
    if shard is None:
        return held
    joined: list[list[int]] = torch.cat(list(shard.exchange(torch.tensor(held))), 1).tolist()
    return joined


def _together_or_apart(heads: Sequence[View], held: Sequence[int]) -> list[View]:
    """Join the heads of a row that hold equally many: so they are shown if the row is alone."""
    if len(set(held)) > 1:
        return [attrs.evolve(view, of_layer=held) for view in heads]
    keys, turned, values, positions = (
        torch.cat([getattr(view, name) for view in heads], 1)
        for name in ("keys", "turned", "values", "positions")
    )
    states = [view.state for view in heads if view.state is not None]
    return [
        View(
            rows=heads[0].rows,
            heads=slice(0, len(heads)),
            keys=keys,
            turned=turned,
            values=values,
            positions=positions,
            seen=heads[0].seen,
            state=torch.cat(states, 1) if states else None,
        )
    ]


def _heads_of(contents: Contents, turned: Turned) -> list[list[View]]:
    """Put every head's prefix before its part of the tail."""
    prefix, slots = contents.prefix, contents.slots
    if prefix is None or turned.prefix is None:
        raise TypeError("only an uneven layer is shown head by head")
    keys, values, positions = contents.keys.view, contents.values.view, slots.positions
    groups = 0 if contents.state is None else contents.state.shape[1] // slots.heads
    found: list[list[View]] = [[] for _ in range(slots.batch)]
    for row, head, rows in prefix.heads():
        first = slots.held - slots.lengths[row]

        def joined(flat: Tensor, tail: Tensor, here: tuple[int, int] = (row, head)) -> Tensor:
            return torch.cat([flat, tail[here][first:]])[None, None]  # noqa: B023 - used at once

        state = None
        if contents.state is not None and prefix.state is not None:
            tail = contents.state[row, head * groups : (head + 1) * groups, first:]
            state = torch.cat([prefix.state[rows].transpose(0, 1), tail], dim=1)[None]
        found[row].append(
            View(
                rows=slice(row, row + 1),
                heads=slice(head, head + 1),
                keys=joined(prefix.keys[rows], keys),
                turned=joined(turned.prefix[rows], turned.keys),
                values=joined(prefix.values[rows], values),
                positions=joined(prefix.positions[rows].long(), positions),
                seen=slots.seen[row],
                state=state,
            )
        )
    return found
