"""The interface of a storage: how a layer keeps what it holds between two forwards."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from kvpolicy.cache.memory.contents import Contents


class Stored(Protocol):
    """What a layer holds, put away."""

    layout: Contents
    """Slots, positions, running state and lengths are true; rows may be in another form."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated, wherever they are."""

    @property
    def row_nbytes(self) -> int:
        """Bytes that key and value of one position have in the model's own precision."""

    def select_rows(self, batch: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""

    def forget_last(self, count: int) -> None:
        """Drop each sequence's last `count` tokens, or raise as `Slots.held_of_last` does."""


@runtime_checkable
class Storage(Protocol):
    """Puts away what layers hold; one object serves all layers of a cache.

    A layer takes everything out for a forward, adds to it and perhaps evicts, and puts it away.
    """

    def store(self, contents: Contents, before: Any) -> Any:
        """Put away what a layer holds after its first forward or an eviction.

        `before` is what was taken out for this forward, as it was; None for the first.
        """

    def extend(self, stored: Any, contents: Contents) -> None:
        """Put away the rows that `contents` has behind those that were taken out."""

    def restored(self, stored: Any) -> Contents:
        """Return all of it as the model computes with; what is stored stays as it is."""

    def prefetch(self, stored: Any) -> None:
        """Begin to bring what will be asked for next, if that helps."""
