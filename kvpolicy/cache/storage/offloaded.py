"""Offloaded storage: what a layer holds lies in the host's memory until its attention needs it."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import attrs
import torch
from torch import Tensor

from kvpolicy.cache.memory.contents import Contents, Rows
from kvpolicy.cache.memory.ragged import Prefix

_HOST = torch.device("cpu")


@attrs.define
class OffloadedContents:
    """A layer whose rows, and prefix, are in the host's memory; slots stay on the device."""

    layout: Contents
    coming: Contents | None = attrs.field(default=None, eq=False, repr=False)
    """All of it on the device, where a copy has been begun."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated, nearly all of them in the host's memory."""
        return self.layout.nbytes + (0 if self.coming is None else self.coming.nbytes)

    @property
    def row_nbytes(self) -> int:
        """Bytes of key and value of one position."""
        return self.layout.row_nbytes

    @property
    def device(self) -> torch.device:
        """Where attention is computed."""
        return self.layout.slots.device

    def __deepcopy__(self, memo: dict[int, Any]) -> OffloadedContents:
        """Copy what is in the host's memory: what is coming may not be there yet."""
        return OffloadedContents(layout=copy.deepcopy(self.layout, memo))

    def select_rows(self, batch: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        self.coming = None
        self.layout.select_rows(batch)

    def forget_last(self, count: int) -> None:
        """Drop each sequence's last `count` tokens, or raise as `Slots.held_of_last` does."""
        self.coming = None
        self.layout.forget_last(count)


@attrs.frozen(kw_only=True)
class Offloaded:
    """Keys, values and running state in the host's memory; a layer's come for its own forward.

    On a GPU the next layer's are copied, on a stream of their own, while this one attends: two
    layers are there at a time. Only new rows go back, so that a decoded token moves one row.
    """

    def store(self, contents: Contents, before: Any) -> OffloadedContents:
        """Copy all of it to the host."""
        return OffloadedContents(layout=_moved(contents, _HOST, pin=_is_gpu(contents)))

    def extend(self, stored: OffloadedContents, contents: Contents) -> None:
        """Copy the new rows, and what else has changed, to the host."""
        layout = stored.layout
        for name in ("keys", "values"):
            rows: Rows = getattr(layout, name)
            rows.append(getattr(contents, name).behind(rows.held).to(_HOST))
            if _is_gpu(contents):
                rows.buffer = rows.buffer.pin_memory()  # as it is, unless it has grown
        layout.slots = contents.slots
        layout.state = None if contents.state is None else contents.state.to(_HOST)
        if layout.prefix is not None and contents.prefix is not None:
            state = contents.prefix.state
            layout.prefix = attrs.evolve(
                layout.prefix, state=None if state is None else state.to(_HOST)
            )

    def restored(self, stored: OffloadedContents) -> Contents:
        """Return all of it on the device, from where it is or is coming."""
        if stored.layout.keys.buffer.device != _HOST:
            # It was read from a file straight to the device.
            stored.layout = _moved(stored.layout, _HOST, pin=_is_gpu(stored.layout))
        coming, stored.coming = stored.coming, None
        if coming is None:
            return _moved(stored.layout, stored.device)
        now = torch.cuda.current_stream(stored.device)
        now.wait_stream(_stream(stored.device))
        for tensor in _tensors(coming):
            tensor.record_stream(now)
        return coming

    def prefetch(self, stored: OffloadedContents) -> None:
        """Begin to copy it to a GPU."""
        device = stored.device
        if device.type != "cuda" or stored.coming is not None:
            return
        stream = _stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            stored.coming = _moved(stored.layout, device)


@cache
def _stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)


def _is_gpu(contents: Contents) -> bool:
    return contents.slots.device.type == "cuda"


def _tensors(contents: Contents) -> list[Tensor]:
    """Return all that was copied."""
    prefix = contents.prefix
    found = [contents.keys.buffer, contents.values.buffer, contents.state]
    if prefix is not None:
        found += [prefix.keys, prefix.values, prefix.positions, prefix.state]
    return [each for each in found if each is not None]


def _moved(contents: Contents, device: torch.device, *, pin: bool = False) -> Contents:
    """Return a copy on `device`, with slots of its own where the others are."""

    def moved(tensor: Tensor) -> Tensor:
        copied = tensor.to(device, non_blocking=device.type == "cuda", copy=True)
        return copied.pin_memory() if pin else copied

    state, prefix = contents.state, contents.prefix
    return Contents(
        keys=Rows(moved(contents.keys.view)),
        values=Rows(moved(contents.values.view)),
        slots=contents.slots.copied(),
        state=None if state is None else moved(state),
        prefix=None if prefix is None else _moved_prefix(prefix, moved),
    )


def _moved_prefix(prefix: Prefix, moved: Any) -> Prefix:
    return attrs.evolve(
        prefix,
        keys=moved(prefix.keys),
        values=moved(prefix.values),
        positions=moved(prefix.positions),
        state=None if prefix.state is None else moved(prefix.state),
    )
