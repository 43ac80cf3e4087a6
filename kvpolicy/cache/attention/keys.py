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

from kvpolicy.cache.attention.turns import Tables, turns
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.ragged import RaggedRows
from kvpolicy.cache.memory.sent import sent
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
    values: Float[Tensor, "B N T Dv"] | None = None
    """The values that attention sees where a layer holds latents; None: those that it holds."""


@attrs.frozen(kw_only=True, eq=False)
class Rotation:
    """Rotates vectors of the dense tokens from their rotary positions to their slots.

    `old` are the cosines and sines of rotary positions, which all heads share for queries; `new`
    are those of slots. On a CPU `new` are those of the angles between, and `old` is None.
    """

    old: Tables | None
    new: Tables
    interleaved: bool

    @classmethod
    def between(
        cls, old: Int[Tensor, "#B #N S"], new: Int[Tensor, " S"], rotary: Rotary
    ) -> Rotation:
        """Look the cosines and sines up."""
        # Padding has no position; any will do, since no token sees it.
        before, after = rotary.tables(old.clamp(min=0)), rotary.tables(new[None, None])
        return cls(old=before, new=after, interleaved=rotary.interleaved)

    @classmethod
    def to_slots(
        cls, old: Int[Tensor, "#B #N S"], first: int, device: torch.device, rotary: Rotary
    ) -> Rotation:
        """Look the cosines and sines up for slots that count up from `first`."""
        if device.type == "cpu":
            return cls(old=None, new=turns(old, first, rotary), interleaved=rotary.interleaved)
        places = torch.arange(first, first + old.shape[-1], device=device)
        return cls.between(old, places, rotary)

    def of_all(self, vectors: Float[Tensor, "B N S D"]) -> Float[Tensor, "B N S D"]:
        """Rotate the vectors of all tokens."""
        return rerotate_keys(vectors, self.old, self.new, interleaved=self.interleaved)

    def of_last(self, vectors: Float[Tensor, "B H Q D"]) -> Float[Tensor, "B H Q D"]:
        """Rotate the vectors of the last Q tokens, which all heads hold."""
        last = slice(self.new[0].shape[2] - vectors.shape[2], None)
        new = self.new[0][:, :1, last], self.new[1][:, :1, last]
        old = None if self.old is None else (self.old[0][:, :1, last], self.old[1][:, :1, last])
        return rerotate_keys(vectors, old, new, interleaved=self.interleaved)


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
    old = _rotary_positions(slots, device)
    if new is not None:
        old = _with_last(old, new.to(device)[:, None])
    rotation = Rotation.to_slots(old, first, device, slot_rotary)
    return AttendedKeys(
        dense=rotation.of_all(keys),
        ragged=None if ragged is None else _ragged_by_slot(ragged, slots, slot_rotary),
        queries=rotation,
        renumbered=first + slots.held,
    )


def _rotary_positions(slots: Slots, device: torch.device) -> Int[Tensor, "B N S"]:
    """Return the rotary position of every slot."""
    if len(set(slots.offsets)) > 1:
        return slots.positions + sent(slots.offsets, device)[:, None, None]
    offset = slots.offsets[0]
    return slots.positions + offset if offset else slots.positions


def _with_last(old: Int[Tensor, "B N S"], new: Int[Tensor, "B 1 Q"]) -> Int[Tensor, "B N S"]:
    """Return the positions with those of the last Q tokens in place of what they were."""
    count = new.shape[-1]
    # All heads hold the new tokens. To compare on a GPU would be to wait for it.
    if old.device.type == "cpu" and torch.equal(old[:, :1, -count:], new):
        return old
    return torch.cat([old[..., : old.shape[-1] - count], new.expand(-1, old.shape[1], -1)], -1)


def _ragged_by_slot(ragged: RaggedRows, slots: Slots, rotary: Rotary) -> Float[Tensor, "R D"]:
    """Rotate every head's rows to the slots right before the dense tokens of its row."""
    offsets = slots.offsets
    firsts = [ragged.longest + slots.held - length for length in slots.lengths]
    places = [
        torch.arange(rows.start - rows.stop, 0, device="cpu") + firsts[row]
        for row, _, rows in ragged.heads()
    ]
    device, old = ragged.positions.device, ragged.positions.long()
    if any(offsets):
        of_rows = torch.tensor(offsets, device="cpu").repeat_interleave(ragged.lengths.sum(1))
        old = old + of_rows.to(device, non_blocking=True)
    new = torch.cat(places).to(device, non_blocking=True)
    rotation = Rotation.between(old[None, None], new, rotary)
    return rotation.of_all(ragged.keys[None, None])[0, 0]
