"""Keys as attention sees them: as stored, or rotated to their slots.

With slot positions, keys stay stored as the model rotated them, and every forward rotates them
anew, once, in float32. So rounding does not add up over evictions, and true positions stay known.
Rotary attention depends on distances only. The newest token keeps its true position, and the other
tokens count back from it without a gap: queries and new keys are right as the model rotates them.
"""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.ragged import RaggedRows
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.observation.rotary import Rotary
from kvpolicy_kernels import rerotate_keys


@attrs.frozen(kw_only=True, eq=False)
class AttendedKeys:
    """The keys of a layer as attention sees them: dense ones, and those of ragged rows."""

    dense: Float[Tensor, "B N T D"]
    ragged: Float[Tensor, "R D"] | None = None


def attended(contents: Contents, slot_rotary: Rotary | None = None) -> AttendedKeys:
    """Return the keys as stored, or as if the tokens held were all that the model ever read.

    `slot_rotary` is the model's rotary embedding where rotary positions follow slots.
    """
    keys, ragged = contents.keys.view, contents.ragged
    if slot_rotary is None:
        return AttendedKeys(dense=keys, ragged=None if ragged is None else ragged.keys)
    if ragged is not None:
        return AttendedKeys(dense=keys, ragged=_ragged_by_slot(ragged, contents.slots, slot_rotary))
    return AttendedKeys(dense=_dense_by_slot(keys, contents.slots, slot_rotary))


def _dense_by_slot(
    keys: Float[Tensor, "B N T D"], slots: Slots, rotary: Rotary
) -> Float[Tensor, "B N T D"]:
    moved = slots.moved
    if not moved:
        return keys
    seen = torch.tensor(slots.seen, device=keys.device)[:, None, None]
    places = seen - slots.held + torch.arange(moved, device=keys.device)
    rotated = _rotated(keys[:, :, :moved], slots.positions[:, :, :moved], places, rotary)
    return torch.cat([rotated, keys[:, :, moved:]], dim=2)


def _ragged_by_slot(ragged: RaggedRows, slots: Slots, rotary: Rotary) -> Float[Tensor, "R D"]:
    """Rotate every head's rows to stand right before the dense rows of its sequence."""
    places = [
        torch.arange(rows.start - rows.stop, 0, device="cpu") + slots.seen[row] - slots.lengths[row]
        for row, _, rows in ragged.heads()
    ]
    rotated = _rotated(
        ragged.keys[None, None],
        ragged.positions.long()[None, None],
        torch.cat(places).to(ragged.keys.device)[None, None],
        rotary,
    )
    return rotated[0, 0]


def _rotated(
    keys: Float[Tensor, "B N S D"],
    positions: Int[Tensor, "B N S"],
    slots: Int[Tensor, "B #N S"],  # noqa: UP037 - a shape, and no comment: N may be 1
    rotary: Rotary,
) -> Float[Tensor, "B N S D"]:
    # Padding has no position; any will do, since no token sees it.
    old, new = (rotary.tables(each.clamp(min=0)) for each in (positions, slots))
    return rerotate_keys(keys, old, new, interleaved=rotary.interleaved)
