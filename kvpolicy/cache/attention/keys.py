"""Renumbered slots: keys turned from the position they were written at to their place in the cache.

Keys stay stored as the model rotated them, and are turned anew for every forward: once, in float32.
So nothing drifts, however often a layer is evicted, and true positions stay known. Only distances
matter to rotary attention; the newest token keeps its true position, and the others count back from
it without a gap. Queries and new keys are then right as the model rotates them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.cache.eviction.views import Turned
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.observation.rotary import Rotary
from kvpolicy_kernels import rerotate_keys


def as_stored(contents: Contents) -> Turned:
    """Return the keys as they are."""
    prefix = contents.prefix
    return Turned(keys=contents.keys.view, prefix=None if prefix is None else prefix.keys)


def by_slot(contents: Contents, rotary: Rotary) -> Turned:
    """Return the keys as if the tokens held were all there ever was."""
    keys = contents.keys.view
    if contents.prefix is not None:
        return Turned(keys=keys, prefix=_prefix_by_slot(contents, rotary))
    moved = contents.slots.moved
    if not moved:
        return Turned(keys=keys)
    positions = contents.slots.positions[:, :, :moved]
    seen = torch.tensor(contents.slots.seen, device=keys.device)[:, None, None]
    slots = seen - contents.slots.held + torch.arange(moved, device=keys.device)
    turned = _turned(keys[:, :, :moved], positions, slots, rotary)
    return Turned(keys=torch.cat([turned, keys[:, :, moved:]], dim=2))


def _prefix_by_slot(contents: Contents, rotary: Rotary) -> Float[Tensor, "R D"]:
    """Turn every head's prefix to stand right before the tail of its row."""
    prefix, slots = contents.prefix, contents.slots
    if prefix is None:
        raise TypeError("only an uneven layer has a prefix")
    places = torch.cat(
        [
            torch.arange(rows.start - rows.stop, 0) + slots.seen[row] - slots.lengths[row]
            for row, _, rows in prefix.heads()
        ]
    ).to(prefix.keys.device)
    turned = _turned(
        prefix.keys[None, None], prefix.positions.long()[None, None], places[None, None], rotary
    )
    return turned[0, 0]


def _turned(
    keys: Float[Tensor, "B N S D"],
    positions: Int[Tensor, "B N S"],
    slots: Int[Tensor, "B #N S"],  # noqa: UP037 - no comment: N may be 1
    rotary: Rotary,
) -> Float[Tensor, "B N S D"]:
    # Padding has no position; it may be turned to anywhere.
    old, new = (rotary.tables(each.clamp(min=0)) for each in (positions, slots))
    return rerotate_keys(keys, old, new, interleaved=rotary.interleaved)
