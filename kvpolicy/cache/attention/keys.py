"""Queries and keys as attention sees them: as the model rotated them, or rotated to their slots.

With slot positions, keys stay stored as the model rotated them, and every forward rotates them
anew, once, in float32. So rounding does not add up over evictions, and true positions stay known.
Once something was evicted, the slots number all tokens held, new ones and their queries included,
as the authors of StreamingLLM do. So angles stay small, however far a stream has come.
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
    """The keys of a layer as attention sees them: dense ones, and those of ragged rows.

    `queries` rotates the queries of the last Q tokens likewise, and `renumbered` counts the slots;
    both are None where queries and keys are as the model rotated them.
    """

    dense: Float[Tensor, "B N T D"]
    ragged: Float[Tensor, "R D"] | None = None
    queries: Rotation | None = None
    renumbered: int | None = None


@attrs.frozen(kw_only=True, eq=False)
class Rotation:
    """Rotates vectors of the dense tokens from their rotary positions to their slots.

    `old` are rotary positions, which all heads share for queries; `new` are slots.
    """

    old: Int[
        Tensor,
        (
            B  # N T
        ),
    ]
    new: Int[Tensor, " T"]
    rotary: Rotary

    def of_last(self, vectors: Float[Tensor, "B H Q D"]) -> Float[Tensor, "B H Q D"]:
        """Rotate the vectors of the last Q tokens, which all heads hold."""
        count = vectors.shape[2]
        return _rotated(vectors, self.old[:, :1, -count:], self.new[-count:], self.rotary)


def attended(
    contents: Contents, slot_rotary: Rotary | None = None, new: Int[Tensor, "B Q"] | None = None
) -> AttendedKeys:
    """Return the keys as stored, or as if the tokens held were all that the model ever read.

    `slot_rotary` is the model's rotary embedding where rotary positions follow slots. `new` are the
    rotary positions that the model gave to the newest tokens; None counts on from the tokens before
    them.
    """
    keys, ragged, slots = contents.keys.view, contents.ragged, contents.slots
    if slot_rotary is None or not (slots.moved or ragged is not None):
        return AttendedKeys(dense=keys, ragged=None if ragged is None else ragged.keys)
    device, first = keys.device, 0 if ragged is None else ragged.longest
    offsets = torch.tensor(slots.offsets, device=device)
    old = slots.positions + offsets[:, None, None]
    if new is not None:
        new = new.to(device)[:, None].expand(-1, old.shape[1], -1)
        old = torch.cat([old[..., : slots.held - new.shape[-1]], new], -1)
    rotation = Rotation(
        old=old,
        new=torch.arange(first, first + slots.held, device=device),
        rotary=slot_rotary,
    )
    return AttendedKeys(
        dense=_rotated(keys, rotation.old, rotation.new, slot_rotary),
        ragged=None if ragged is None else _ragged_by_slot(ragged, slots, slot_rotary),
        queries=rotation,
        renumbered=first + slots.held,
    )


def _ragged_by_slot(ragged: RaggedRows, slots: Slots, rotary: Rotary) -> Float[Tensor, "R D"]:
    """Rotate every head's rows to the slots right before the dense tokens of its row."""
    offsets = torch.tensor(slots.offsets, device=ragged.keys.device)
    firsts = [ragged.longest + slots.held - length for length in slots.lengths]
    places = [
        torch.arange(rows.start - rows.stop, 0, device="cpu") + firsts[row]
        for row, _, rows in ragged.heads()
    ]
    lengths = ragged.lengths.sum(1).to(offsets.device)
    old = ragged.positions.long() + offsets.repeat_interleave(lengths)
    new = torch.cat(places).to(offsets.device)
    return _rotated(ragged.keys[None, None], old[None, None], new, rotary)[0, 0]


def _rotated(
    vectors: Float[Tensor, "B N S D"],
    old: Int[Tensor, "#B #N S"],
    new: Int[Tensor, " S"],
    rotary: Rotary,
) -> Float[Tensor, "B N S D"]:
    # Padding has no position; any will do, since no token sees it.
    before, after = rotary.tables(old.clamp(min=0)), rotary.tables(new[None, None])
    return rerotate_keys(vectors, before, after, interleaved=rotary.interleaved)
