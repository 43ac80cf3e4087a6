"""The angles from rotary positions to slots, looked up once on a CPU for layers and tokens alike.

A layer that is evicted at every token needs them for all its keys, at every token.
"""

from __future__ import annotations

import weakref
from typing import TypeAlias

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.observation.rotary import Rotary
from kvpolicy_kernels import angle_between

Tables: TypeAlias = tuple[Float[Tensor, "#B #N S R"], Float[Tensor, "#B #N S R"]]
"""The cosines and sines of angles."""

REMEMBERED = 8192
"""The first positions, whose cosines and sines are kept; and the most slots whose turns are."""


@attrs.frozen(eq=False)
class _Turns:
    """The turns that were asked for last."""

    version: object
    first: int
    old: Int[Tensor, "#B #N S"]
    tables: Tables

    def are(self, version: object, first: int, old: Int[Tensor, "#B #N S"]) -> bool:
        """Whether these are the turns that are asked for now."""
        if (self.version, self.first) != (version, first) or not torch.equal(self.old, old):
            return False
        # A backward pass cannot save tensors that were made in inference mode.
        return torch.is_inference_mode_enabled() or not self.tables[0].is_inference()


_known: weakref.WeakKeyDictionary[Rotary, tuple[object, Tables]] = weakref.WeakKeyDictionary()
"""The cosines and sines of positions from 0 on, and the version of the embedding."""
_last: weakref.WeakKeyDictionary[Rotary, _Turns] = weakref.WeakKeyDictionary()


def turns(old: Int[Tensor, "#B #N S"], first: int, rotary: Rotary) -> Tables:
    """Return the angles from rotary positions to slots that count up from `first`, on a CPU.

    They are computed once for heads and layers that have equal positions. Padding has no position;
    any will do, since no token sees it.
    """
    if old.stride(1) == 0 or torch.equal(old, old[:, :1].expand_as(old)):
        old = old[:, :1]
    version, last = getattr(rotary, "version", None), _last.get(rotary)
    if last is not None and last.are(version, first, old):
        return last.tables
    found = angle_between(_of(old.clamp(min=0), rotary), _of_slots(first, old.shape[-1], rotary))
    if old.shape[-1] <= REMEMBERED:
        _last[rotary] = _Turns(version, first, old.clone(), found)
    return found


def _of(positions: Int[Tensor, "#B #N S"], rotary: Rotary) -> Tables:
    """Return the cosines and sines of positions."""
    beyond = int(positions.max()) + 1 if positions.numel() else 0
    if beyond > REMEMBERED:
        return rotary.tables(positions)
    cosines, sines = _of_first(beyond, rotary)
    rows = positions.flatten()
    shape = (*positions.shape, cosines.shape[-1])
    return cosines.index_select(0, rows).view(shape), sines.index_select(0, rows).view(shape)


def _of_slots(first: int, count: int, rotary: Rotary) -> Tables:
    """Return the cosines and sines of slots."""
    if first + count > REMEMBERED:
        return rotary.tables(torch.arange(first, first + count, device="cpu")[None, None])
    cosines, sines = _of_first(first + count, rotary)
    slots = slice(first, first + count)
    return cosines[None, None, slots], sines[None, None, slots]


def _of_first(
    count: int, rotary: Rotary
) -> tuple[Float[Tensor, "positions R"], Float[Tensor, "positions R"]]:
    """Return the cosines and sines of at least the first `count` positions."""
    version, known = getattr(rotary, "version", None), _known.get(rotary)
    if known is None or known[0] != version or len(known[1][0]) < count:
        # A power of two, so that a stream has them computed few times.
        positions = torch.arange(1 << max(0, count - 1).bit_length(), device="cpu")
        known = version, rotary.tables(positions)
        _known[rotary] = known
    return known[1]
