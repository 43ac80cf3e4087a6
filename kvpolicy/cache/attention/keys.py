"""Queries and keys as attention sees them: as the model rotated them, or rotated to their slots.

With slot positions, keys stay stored as the model rotated them, and every forward rotates them
anew, once, in float32. So rounding does not add up over evictions, and true positions stay known.
Once something was evicted, the slots number all tokens held, new ones and their queries included,
as the authors of StreamingLLM do. So angles stay small, however far a stream has come.
"""

from __future__ import annotations

import weakref
from typing import TypeAlias

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.ragged import RaggedRows
from kvpolicy.cache.memory.sent import sent
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.observation.rotary import Rotary
from kvpolicy_kernels import rerotate_keys

Tables: TypeAlias = tuple[Tensor, Tensor]
"""The cosines and sines of positions."""

REMEMBERED = 8192
"""The most slots whose cosines and sines are kept for the next layer and token."""
_known: weakref.WeakKeyDictionary[Rotary, tuple[tuple[object, ...], Tables]] = (
    weakref.WeakKeyDictionary()
)

_last: weakref.WeakKeyDictionary[Rotary, tuple[Tensor, object, Tables]] = (
    weakref.WeakKeyDictionary()
)
"""The rotary positions that were looked up last on a CPU, and their cosines and sines."""


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
    are those of slots.
    """

    old: Tables
    new: Tables
    interleaved: bool

    @classmethod
    def between(
        cls, old: Int[Tensor, "#B #N S"], new: Int[Tensor, " S"], rotary: Rotary
    ) -> Rotation:
        """Look the cosines and sines up."""
        after = rotary.tables(new[None, None])
        return cls(old=_old_tables(old, rotary), new=after, interleaved=rotary.interleaved)

    @classmethod
    def to_slots(
        cls, old: Int[Tensor, "#B #N S"], first: int, device: torch.device, rotary: Rotary
    ) -> Rotation:
        """Look the cosines and sines up for slots that count up from `first`."""
        after = _slot_tables(first, old.shape[-1], device, rotary)
        return cls(old=_old_tables(old, rotary), new=after, interleaved=rotary.interleaved)

    def of_all(self, vectors: Float[Tensor, "B N S D"]) -> Float[Tensor, "B N S D"]:
        """Rotate the vectors of all tokens."""
        return rerotate_keys(vectors, self.old, self.new, interleaved=self.interleaved)

    def of_last(self, vectors: Float[Tensor, "B H Q D"]) -> Float[Tensor, "B H Q D"]:
        """Rotate the vectors of the last Q tokens, which all heads hold."""
        last = slice(self.new[0].shape[2] - vectors.shape[2], None)
        cosines, sines = (table[:, :1, last] for table in self.old)
        after = self.new[0][:, :, last], self.new[1][:, :, last]
        return rerotate_keys(vectors, (cosines, sines), after, interleaved=self.interleaved)


def _old_tables(old: Int[Tensor, "#B #N S"], rotary: Rotary) -> Tables:
    """Return the cosines and sines of rotary positions.

    On a CPU they are looked up once if all heads have equal positions, or if the layer before had
    equal ones. To compare them on a GPU would be to wait for it.
    """
    if old.device.type != "cpu" or old.shape[-1] > REMEMBERED:
        return rotary.tables(old.clamp(min=0))
    if torch.equal(old, old[:, :1].expand_as(old)):
        old = old[:, :1]
    known, version = _last.get(rotary), _version_of(rotary)
    if known is None or known[1] != version or not torch.equal(known[0], old):
        # Padding has no position; any will do, since no token sees it.
        known = old.clone(), version, rotary.tables(old.clamp(min=0))
        _last[rotary] = known
    return known[2]


def _version_of(rotary: Rotary) -> object:
    """Return what changes when a rotary embedding is written to, if it can be."""
    return getattr(rotary, "version", None)


def _slot_tables(first: int, count: int, device: torch.device, rotary: Rotary) -> Tables:
    """Return the cosines and sines of slots; every layer and every decoded token needs the same."""
    key = (first, count, device, _version_of(rotary))
    known = _known.get(rotary)
    if known is None or known[0] != key:
        places = torch.arange(first, first + count, device=device)[None, None]
        known = key, rotary.tables(places)
        if count <= REMEMBERED:
            _known[rotary] = known
    return known[1]


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
        new = new.to(device)[:, None].expand(-1, old.shape[1], -1)
        old = torch.cat([old[..., : slots.held - new.shape[-1]], new], -1)
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
