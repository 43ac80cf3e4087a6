"""A layer's contents while its tokens are repeated: read behind, and never written to.

Only the running state is written to: what a scorer learns of a chunk is put where its tokens are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.cache.eviction.views import View
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.rows import Rows
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.errors import CacheStateError
from kvpolicy.pipeline.pipeline import Pipeline


def rows_to_repeat(
    pipeline: Pipeline, layers: Sequence[Contents], counts: Sequence[int]
) -> list[slice]:
    """Return the rows that evict, together where each layer holds equally much of them.

    `counts` are the last tokens of each row that are to be repeated.
    """
    slots = layers[0].slots
    competing = slots.newest if pipeline.per_turn else slots.seen
    evicts = [
        bool(count) and not pipeline.keeps_all(length)
        for count, length in zip(counts, competing, strict=True)
    ]
    # A row of uneven heads is read alone.
    is_uneven = any(each.ragged is not None for each in layers)

    def kind(row: int) -> tuple[object, ...]:
        held = [(of.slots.lengths[row], of.slots.offsets[row]) for of in layers]
        alike = counts[row], slots.seen[row], slots.settled[row], evicts[row]
        return row if is_uneven else None, alike, held

    groups = [list(rows) for _, rows in groupby(range(slots.batch), kind)]
    return [slice(rows[0], rows[-1] + 1) for rows in groups if evicts[rows[0]]]


def behind(
    contents: Contents,
    rows: slice,
    keys: Float[Tensor, "b N Q D"],
    values: Float[Tensor, "b N Q Dv"],
) -> Contents:
    """Return what some rows hold, without padding, with other tokens behind it, in new memory."""
    slots, ragged, remainder = contents.slots, contents.ragged, contents.remainder
    first = slots.held - slots.lengths[rows.start]
    tables = [
        torch.cat([table.view[rows, :, first:], new], 2)
        for table, new in ((contents.keys, keys), (contents.values, values))
    ]
    if ragged is not None and slots.batch > 1:
        ragged = ragged.of_rows(list(range(rows.start, rows.stop)))
    if remainder is not None:
        remainder = remainder.select_rows(torch.arange(rows.start, rows.stop, device="cpu"))
    held = slots.held - first
    twin = Slots(
        batch=rows.stop - rows.start,
        heads=slots.heads,
        held=held,
        lengths=slots.lengths[rows],
        seen=slots.seen[rows],
        moved=min(slots.moved, held),
        known=slots.positions[rows, :, first:],
        offsets=slots.offsets[rows],
        settled=slots.settled[rows],
    )
    twin.append(keys.shape[2])
    return Contents(Rows(tables[0]), Rows(tables[1]), twin, ragged=ragged, remainder=remainder)


def put_state(
    contents: Contents,
    rows: slice,
    view: View,
    first: int,
    state: Float[Tensor, "b h C *rest"],
) -> None:
    """Write the state of the positions from `first` on of a view into that of a layer.

    `view` is one of what `behind` returned for these rows. The state is written to as it is: each
    forward has made its own.
    """
    ragged, slots, whole = contents.ragged, contents.slots, contents.state
    if whole is None:
        raise CacheStateError("a chunk was repeated in a layer without running state.")
    groups, count = whole.shape[1] // slots.heads, state.shape[2]
    padding = slots.held - slots.lengths[rows.start]
    if ragged is None:
        begin = padding + first
        heads = slice(view.heads.start * groups, view.heads.stop * groups)
        whole[rows, heads, begin : begin + count] = state
        return
    of_heads = ragged.slices()[rows.start]
    for at, of_head in enumerate(state[0].split(groups)):
        head, place = view.heads.start + at, of_heads[view.heads.start + at]
        inside = max(0, min(count, place.stop - place.start - first))
        if inside and ragged.state is not None:
            begin = place.start + first
            ragged.state[begin : begin + inside] = of_head[:, :inside].transpose(0, 1)
        begin = padding + max(0, first - (place.stop - place.start))
        own = whole[rows.start, head * groups : (head + 1) * groups]
        own[:, begin : begin + count - inside] = of_head[:, inside:]
