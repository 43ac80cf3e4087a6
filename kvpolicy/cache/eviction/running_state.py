"""A layer's running state, brought up to date with every forward."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.cache.attention.keys import AttendedKeys
from kvpolicy.cache.eviction.shown import Shown
from kvpolicy.cache.eviction.views import View, views_of
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.observation.note import Note, Notes
from kvpolicy.pipeline.checks import check_same_state
from kvpolicy.pipeline.notes import accumulated
from kvpolicy.pipeline.pipeline import Pipeline


@torch.no_grad()
def accumulate(pipeline: Pipeline, contents: Contents, keys: AttendedKeys, shown: Shown) -> None:
    """Let the scorer bring its state up to date with the queries of one forward."""
    if contents.state is not None:
        contents.state = _with_new_rows(contents.state, contents.slots.held)
    groups = views_of(contents, keys, shard=shown.shard)
    held = [view for views in groups for view in views if view.keys.shape[2]]
    both = [accumulated(pipeline, shown.observation(pipeline, view, None)) for view in held]
    contents.slots.noted = _of_all_rows([noted for _, noted in both], contents, shown)
    found = [state for state, _ in both if state is not None]
    if not found:
        return
    check_same_state(pipeline.titles["scorer"], found)
    if contents.ragged is None:
        contents.state = _dense(found, groups, contents)
    else:
        _split(found, held, contents)


def _of_all_rows(noted: Sequence[Notes], contents: Contents, shown: Shown) -> list[Note] | None:
    """Return the notes of all rows; None if some are not known, or spans change the scores."""
    if shown.spans is not None or contents.ragged is not None:
        return None
    rows = [note for of_view in noted if of_view is not None for note in of_view]
    return rows if len(rows) == contents.slots.batch else None


def _with_new_rows(state: Float[Tensor, "B H S *rest"], held: int) -> Float[Tensor, "B H T *rest"]:
    new = state.new_zeros((*state.shape[:2], held - state.shape[2], *state.shape[3:]))
    return torch.cat([state, new], dim=2)


def _dense(
    found: Sequence[Tensor], groups: Sequence[Sequence[View]], contents: Contents
) -> Float[Tensor, "B H S *rest"]:
    """Put the states of rows of unequal length into one tensor, right-aligned."""
    # One row that was selected from a padded batch may be shorter than the slots.
    if len(groups) == 1 and found[0].shape[2] == contents.slots.held:
        return found[0]
    shape = (contents.slots.batch, found[0].shape[1], contents.slots.held, *found[0].shape[3:])
    state = found[0].new_zeros(shape)
    views = [views[0] for views in groups if views[0].keys.shape[2]]
    for view, each in zip(views, found, strict=True):
        state[view.rows, :, contents.slots.held - each.shape[2] :] = each
    return state


def _split(found: Sequence[Tensor], views: Sequence[View], contents: Contents) -> None:
    """Split every head's state between its ragged and its dense rows."""
    ragged, slots = contents.ragged, contents.slots
    if ragged is None:
        return
    groups, rest = found[0].shape[1] // views[0].keys.shape[1], found[0].shape[3:]
    flat = found[0].new_zeros((len(ragged.positions), groups, *rest))
    tail = found[0].new_zeros((slots.batch, slots.heads * groups, slots.held, *rest))
    states = {
        (view.rows.start, view.heads.start + at): of_head
        for view, state in zip(views, found, strict=True)
        for at, of_head in enumerate(state[0].split(groups))
    }
    for row, head, rows in ragged.heads():
        if (state := states.get((row, head))) is None:
            continue
        length = rows.stop - rows.start
        flat[rows] = state[:, :length].transpose(0, 1)
        new = state[:, length:]
        tail[row, head * groups : (head + 1) * groups, slots.held - new.shape[1] :] = new
    contents.ragged = attrs.evolve(ragged, state=flat)
    contents.state = tail
