"""Faults that a device finds and the host reads later, at once for all layers of a forward.

To read a number of a GPU is to wait for all that it was told before. So what is wrong is computed
there, and read when the next forward begins: the GPU has been through by then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NoReturn

import attrs
import torch
from jaxtyping import Bool, Float
from torch import Tensor

Refuse = Callable[[], NoReturn]
"""Raises the error of a fault. It is kept until the fault is read, so it holds no tensor."""

PATIENCE = 16
"""Forwards after which doubts that are not urgent are read."""

_AT_ONCE = ("cpu", "mps")
"""Devices that need no patience: the host itself, and one without float64."""


@attrs.frozen(eq=False)
class Doubt:
    """A number that is finite unless something is wrong."""

    number: Float[Tensor, ""]
    refuse: Refuse


class Doubts:
    """The doubts of one cache that have not been read yet.

    >>> doubts = Doubts()
    >>> doubts.settle()
    """

    def __init__(self) -> None:
        """Doubt nothing."""
        self._noted: list[Doubt] = []
        self._urgent = False
        self._forwards = 0

    def note(self, doubt: Doubt, *, urgent: bool) -> None:
        """Remember a doubt; an urgent one is read when the next forward begins."""
        self._noted.append(doubt)
        self._urgent = self._urgent or urgent

    def settle(self, *, patient: bool = False) -> None:
        """Read all doubts, and refuse the first that is justified. Waits for the device.

        With `patient`, doubts that are not urgent are read after `PATIENCE` forwards only.
        """
        self._forwards += 1
        if not self._noted or (patient and not self._urgent and self._forwards < PATIENCE):
            return
        noted = self._noted
        self.clear()
        for doubt, number in zip(noted, _read([each.number for each in noted]), strict=True):
            if not math.isfinite(number):
                doubt.refuse()

    def clear(self) -> None:
        """Forget all doubts."""
        self._noted, self._urgent, self._forwards = [], False, 0


_collecting: ContextVar[Doubts | None] = ContextVar("doubts", default=None)


@contextmanager
def collected(doubts: Doubts) -> Iterator[None]:
    """Let checks on a GPU leave their doubts here until the block is left."""
    token = _collecting.set(doubts)
    try:
        yield
    finally:
        _collecting.reset(token)


def is_patient(device: torch.device) -> bool:
    """Whether what is wrong on a device is read later."""
    return device.type not in _AT_ONCE and _collecting.get() is not None


def refuse_if(fault: Bool[Tensor, ""], refuse: Refuse) -> None:
    """Refuse if there is a fault: now, or on a GPU when doubts are read."""
    doubts = _collecting.get()
    if doubts is None or not is_patient(fault.device):
        if bool(fault):
            refuse()
        return
    number = torch.zeros_like(fault, dtype=torch.float64).masked_fill(fault, torch.nan)
    doubts.note(Doubt(number, refuse), urgent=True)


def refuse_unless_finite(number: Float[Tensor, ""], refuse: Refuse, *, urgent: bool = True) -> None:
    """Note a number of a GPU, to refuse it when doubts are read if it is not finite."""
    doubts = _collecting.get()
    if doubts is None:
        raise RuntimeError("nobody reads this doubt")
    doubts.note(Doubt(number, refuse), urgent=urgent)


def _read(numbers: list[Float[Tensor, ""]]) -> list[float]:
    """Return numbers of one device, or of several, on the host: one wait for each device."""
    by_device: dict[torch.device, dict[torch.dtype, list[int]]] = {}
    for place, number in enumerate(numbers):
        by_device.setdefault(number.device, {}).setdefault(number.dtype, []).append(place)
    found = [math.nan] * len(numbers)
    for by_dtype in by_device.values():
        alike = [torch.stack([numbers[place] for place in places]) for places in by_dtype.values()]
        joined = alike[0] if len(alike) == 1 else torch.cat([each.double() for each in alike])
        places = [place for of_dtype in by_dtype.values() for place in of_dtype]
        read: list[float] = joined.tolist()
        for place, value in zip(places, read, strict=True):
            found[place] = value
    return found
