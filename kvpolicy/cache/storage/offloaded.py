"""Offloaded storage: a layer's contents are in the host's memory between two forwards."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import attrs
import torch
from torch import Tensor

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.ragged import RaggedRows
from kvpolicy.cache.memory.rows import Rows
from kvpolicy.cache.memory.saved import SAVED

_HOST = torch.device("cpu")


@attrs.define(eq=False)
class OffloadedContents:
    """A layer whose rows are in the host's memory; its slots stay on the device."""

    layout: Contents = attrs.field(metadata=SAVED)
    coming: Contents | None = attrs.field(default=None, repr=False)
    """A copy on the device that was begun and may not be complete yet."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated, nearly all of them in the host's memory."""
        return self.layout.nbytes + (0 if self.coming is None else self.coming.nbytes)

    @property
    def row_nbytes(self) -> int:
        """Bytes of the key and the value of one position."""
        return self.layout.row_nbytes

    @property
    def device(self) -> torch.device:
        """Where attention is computed."""
        return self.layout.slots.device

    def __deepcopy__(self, memo: dict[int, Any]) -> OffloadedContents:
        """Copy what is in the host's memory; a copy that was begun may not be complete."""
        return OffloadedContents(layout=copy.deepcopy(self.layout, memo))

    def select_rows(self, batch: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        self.coming = None
        self.layout.select_rows(batch)

    def forget_last(self, count: int) -> None:
        """Drop each sequence's last `count` tokens.

        Raises CacheStateError as `Slots.held_of_last` does.
        """
        self.coming = None
        self.layout.forget_last(count)


@attrs.frozen(kw_only=True)
class Offloaded:
    """Keeps keys, values and running state in the host's memory; each forward copies them back.

    On a GPU the next layer's contents are copied, on a stream of their own, while this layer
    attends: two layers are on the device at a time. Only new rows go back to the host, so that a
    decoded token moves one row.
    """

    @property
    def form(self) -> type[OffloadedContents]:
        """The class of the stored form."""
        return OffloadedContents

    def store(self, contents: Contents, before: Any) -> OffloadedContents:
        """Copy the contents to the host."""
        return OffloadedContents(layout=_moved(contents, _HOST, pin=_is_gpu(contents)))

    def extend(self, stored: OffloadedContents, contents: Contents) -> None:
        """Copy the new rows, and the running state, to the host."""
        layout = stored.layout
        for name in ("keys", "values"):
            rows: Rows = getattr(layout, name)
            rows.append(getattr(contents, name).behind(rows.held).to(_HOST))
            if _is_gpu(contents):
                rows.buffer = (
                    rows.buffer.pin_memory()
                )  # returns the same buffer unless it has grown
        layout.slots = contents.slots
        layout.state = None if contents.state is None else contents.state.to(_HOST)
        if layout.ragged is not None and contents.ragged is not None:
            state = contents.ragged.state
            layout.ragged = attrs.evolve(
                layout.ragged, state=None if state is None else state.to(_HOST)
            )

    def load(self, stored: OffloadedContents) -> Contents:
        """Return the contents on the device; a copy that was begun is waited for."""
        if stored.layout.keys.buffer.device != _HOST:
            # A file is read straight to the device.
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
        """Begin to copy the contents to a GPU."""
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
    """Return every tensor that a copy consists of."""
    ragged = contents.ragged
    found = [contents.keys.buffer, contents.values.buffer, contents.state]
    if ragged is not None:
        found += [ragged.keys, ragged.values, ragged.positions, ragged.state]
    return [each for each in found if each is not None]


def _moved(contents: Contents, device: torch.device, *, pin: bool = False) -> Contents:
    """Return a copy on `device`. Its slots are a copy too, on the device of the others."""

    def moved(tensor: Tensor) -> Tensor:
        copied = tensor.to(device, non_blocking=device.type == "cuda", copy=True)
        return copied.pin_memory() if pin else copied

    state, ragged = contents.state, contents.ragged
    return Contents(
        keys=Rows(moved(contents.keys.view)),
        values=Rows(moved(contents.values.view)),
        slots=contents.slots.copied(),
        state=None if state is None else moved(state),
        ragged=None if ragged is None else _moved_ragged(ragged, moved),
    )


def _moved_ragged(ragged: RaggedRows, moved: Any) -> RaggedRows:
    return attrs.evolve(
        ragged,
        keys=moved(ragged.keys),
        values=moved(ragged.values),
        positions=moved(ragged.positions),
        state=None if ragged.state is None else moved(ragged.state),
    )
