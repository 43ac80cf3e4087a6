"""Keeps a layer's running state in step with its forwards."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.cache.eviction.evict import Shown
from kvpolicy.cache.eviction.views import Turned, View, views_of
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.pipeline.checks import check_same_state
from kvpolicy.policy import Policy


def accumulate(policy: Policy, contents: Contents, turned: Turned, shown: Shown) -> None:
    """Let the scorer bring its state up to date with the queries of one forward."""
    if contents.state is not None:
        contents.state = _with_new_rows(contents.state, contents.slots.held)
    groups = views_of(contents, turned, shard=shown.shard)
    states = [
        [policy.accumulate(shown.observation(policy, view, None)) for view in views if view.length]
        for views in groups
    ]
    found = [state for of_group in states for state in of_group if state is not None]
    if not found:
        return
    check_same_state(policy, found)
    if contents.prefix is None:
        contents.state = _dense(found, groups, contents)
    else:
        _split(found, [view for views in groups for view in views if view.length], contents)


def _with_new_rows(state: Float[Tensor, "B H S *rest"], held: int) -> Float[Tensor, "B H T *rest"]:
    new = state.new_zeros((*state.shape[:2], held - state.shape[2], *state.shape[3:]))
    return torch.cat([state, new], dim=2)


def _dense(
    found: Sequence[Tensor], groups: Sequence[Sequence[View]], contents: Contents
) -> Float[Tensor, "B H S *rest"]:
    """Put the states of rows of unequal length into one tensor, right-aligned."""
    # A row that is left of a padded batch may be shorter than the slots, though it is alone.
    if len(groups) == 1 and found[0].shape[2] == contents.slots.held:
        return found[0]
    shape = (contents.slots.batch, found[0].shape[1], contents.slots.held, *found[0].shape[3:])
    state = found[0].new_zeros(shape)
    views = [views[0] for views in groups if views[0].length]
    for view, each in zip(views, found, strict=True):
        state[view.rows, :, contents.slots.held - each.shape[2] :] = each
    return state


def _split(found: Sequence[Tensor], views: Sequence[View], contents: Contents) -> None:
    """Give every head's state back to its prefix and to its part of the tail."""
    prefix, slots = contents.prefix, contents.slots
    if prefix is None:
        return
    groups, rest = found[0].shape[1] // views[0].keys.shape[1], found[0].shape[3:]
    flat = found[0].new_zeros((len(prefix.positions), groups, *rest))
    tail = found[0].new_zeros((slots.batch, slots.heads * groups, slots.held, *rest))
    states = {
        (view.rows.start, view.heads.start + at): of_head
        for view, state in zip(views, found, strict=True)
        for at, of_head in enumerate(state[0].split(groups))
    }
    for row, head, rows in prefix.heads():
        if (state := states.get((row, head))) is None:
            continue
        length = rows.stop - rows.start
        flat[rows] = state[:, :length].transpose(0, 1)
        new = state[:, length:]
        tail[row, head * groups : (head + 1) * groups, slots.held - new.shape[1] :] = new
    contents.prefix = attrs.evolve(prefix, state=flat)
    contents.state = tail
