"""The rotary positions that a model gives to its tokens, noted where it looks up its tables.

They are the indices of the tokens, plus an offset where `position_ids` say so. Models for images
and video (M-RoPE) give several tokens one position, or one token several.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import torch
from jaxtyping import Int
from torch import Tensor, nn

from kvpolicy.cache.memory.sent import sent
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.errors import InvalidValueError
from kvpolicy.huggingface.attention.graphs import between_graphs
from kvpolicy.observation.rotary import Rotary
from kvpolicy.pipeline.capabilities import needs_of
from kvpolicy.pipeline.doubts import Doubts, collected, is_patient, refuse_unless_finite
from kvpolicy.pipeline.pipeline import Pipeline


class _Notes(threading.local):
    """What each rotary module of this thread was called with last."""

    def __init__(self) -> None:
        self.positions: weakref.WeakKeyDictionary[nn.Module, Tensor] = weakref.WeakKeyDictionary()
        self.is_quiet = False


_notes = _Notes()
_compiled: set[int] = set()
"""The `id` of each module of which notes are taken in compiled forwards, too: each ends a graph."""


def noted_positions(own: Callable[..., Any]) -> Callable[..., Any]:
    """Return a rotary module's `forward` that takes a note of the positions it is given."""

    @functools.wraps(own)
    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling() or id(module) in _compiled:
            note(module, kwargs.get("position_ids", args[1] if len(args) > 1 else None))
        return own(module, *args, **kwargs)

    return forward


@between_graphs
def note(module: nn.Module, positions: Any) -> None:
    """Take a note of the positions that a rotary module is called with in this thread."""
    if isinstance(positions, Tensor) and not _notes.is_quiet:
        _notes.positions[module] = positions


@contextmanager
def not_noted() -> Iterator[None]:
    """Call rotary modules for tables of our own until the block is left."""
    before, _notes.is_quiet = _notes.is_quiet, True
    try:
        yield
    finally:
        _notes.is_quiet = before


def note_when_compiled(modules: Iterable[nn.Module]) -> None:
    """Take notes of these modules in compiled forwards, and of no others."""
    _compiled.clear()
    _compiled.update(map(id, modules))


class RotaryPositions:
    """The rotary positions of one forward's new tokens, found out once for all layers.

    `modules` are the rotary modules of the layers that evict.
    """

    def __init__(self, modules: Sequence[nn.Module], reason: str) -> None:
        """Know nothing; `reason` says which part of the policy computes with rotary positions."""
        self._modules = modules
        self._reason = reason
        self._new: Tensor | None = None
        self._found: tuple[list[int], list[int]] | None = None

    @classmethod
    def of(cls, policy: Pipeline, rotaries: Sequence[Rotary | None]) -> RotaryPositions | None:
        """Watch what a policy computes with; None if neither a part nor slots need it."""
        who = [
            policy.titles[kind] for kind, part in policy.parts.items() if "rotary" in needs_of(part)
        ]
        reason = "slot_positions=True" if policy.slot_positions else str(who[0]) if who else ""
        found = (getattr(each, "module", None) for each in rotaries) if reason else ()
        modules = {id(each): each for each in found if isinstance(each, nn.Module)}
        return cls(list(modules.values()), reason) if modules else None

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The rotary modules that are watched."""
        return self._modules

    def begin(self) -> None:
        """Take what was noted of this forward."""
        self._found, noted = None, [_notes.positions.pop(each, None) for each in self._modules]
        self._new = next((each for each in noted if each is not None), None)

    def of_new(self, batch: int, count: int) -> Int[Tensor, "B Q"] | None:
        """Return the positions of the new tokens; None where they were not noted."""
        if self._new is None or self._new.shape[-1] != count:
            return None
        positions = self._new.reshape(-1, *self._new.shape[-2:])[0]
        return positions.expand(batch, -1) if positions.shape[0] in (1, batch) else None

    def follow(self, slots: Slots, count: int, new_real: list[int] | None, doubts: Doubts) -> None:
        """Let slots know by how much the rotary positions of a row exceed its token indices.

        `new_real` counts the real new tokens of each row where padding stood before them.
        Raises InvalidValueError unless they count up by one. Waits for the device, in the first
        layer of a prompt. That of a decoded token on a GPU is left in doubt.
        """
        new = self.of_new(slots.batch, count)
        if new is None or self._new is None:
            return
        if self._found is None or self._found[0] != slots.seen:
            is_next = count == 1 and new_real is None and min(slots.seen) > 1
            with collected(doubts):
                if is_next and is_patient(new.device):
                    self._doubt_next(self._new, slots)
                    self._found = list(slots.seen), slots.offsets
                else:
                    self._found = list(slots.seen), self._offsets(new, slots, count, new_real)
        slots.offsets = list(self._found[1])

    def _doubt_next(self, found: Int[Tensor, "*axes 1"], slots: Slots) -> None:
        """Leave in doubt whether the only new token of each row has the position that is next."""
        following = [off + seen - 1 for off, seen in zip(slots.offsets, slots.seen, strict=True)]
        same = len(set(following)) == 1
        expected = following[0] if same else sent(following, found.device)[:, None]
        # 0 where it is next, else -inf.
        number = (found == expected).double().log_()
        refuse_unless_finite(
            number.sum() if number.numel() > 1 else number.view(()),
            partial(_refuse_gap, "of one of the last forwards", self._reason),
            urgent=False,
        )

    def _offsets(
        self, new: Int[Tensor, "B Q"], slots: Slots, count: int, new_real: list[int] | None
    ) -> list[int]:
        axes = self._new if self._new is not None else new
        real = slots.positions[:, 0, -count:] >= 0
        if new_real is not None:
            behind = sent(new_real, real.device)[:, None]
            real = torch.arange(count, device=real.device) >= count - behind
        real = real.to(new.device)
        steps = torch.arange(1 - count, 1, device=new.device)
        differ = (new != new[:, -1:] + steps) | (axes != new).reshape(-1, *new.shape).any(0)
        # One tensor, so that the host waits once.
        found = torch.stack([(differ & real).sum(1), new[:, -1], real.sum(1)])
        gaps, last, reals = found.tolist()
        offsets = list(slots.offsets)
        for row, seen in enumerate(slots.seen):
            if not reals[row]:
                continue
            offset, has_old = last[row] - (seen - 1), seen > reals[row]
            if gaps[row] or (has_old and offset != slots.offsets[row]):
                _refuse_gap(f"of row {row}", self._reason)
            offsets[row] = offset
        return offsets


def _refuse_gap(whose: str, reason: str) -> NoReturn:
    raise InvalidValueError(
        f"the model gave the tokens {whose} rotary positions that do not count up by one, as "
        f"models do for images (M-RoPE) or for position_ids with gaps; {reason} computes with "
        "them. Use another recipe, such as 'snapkv', or slot_positions=False."
    )
