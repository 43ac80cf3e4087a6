"""The interface of a storage: the form in which a layer keeps its contents between two forwards."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from kvpolicy.cache.memory.contents import Contents


class Stored(Protocol):
    """The contents of one layer in the form of a storage.

    An attrs class; its fields with the metadata `kvpolicy.cache.memory.saved.SAVED` go into files.
    """

    @property
    def layout(self) -> Contents:
        """Slots, positions, running state and lengths are true; rows may be in another form."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated, on the device and elsewhere."""

    @property
    def row_nbytes(self) -> int:
        """Bytes of the key and the value of one position, in the model's own precision."""

    def select_rows(self, batch: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""

    def forget_last(self, count: int) -> None:
        """Drop each sequence's last `count` tokens.

        Raises CacheStateError as `Slots.held_of_last` does.
        """


S = TypeVar("S", bound=Stored)


@runtime_checkable
class Storage(Protocol[S]):
    """Keeps the contents of layers between forwards; one object serves all layers of a cache.

    A layer loads all its contents for a forward, adds the new tokens, perhaps evicts, and stores
    them again.
    """

    @property
    def form(self) -> type[S]:
        """The class of what `store` returns; files are read by it."""

    def store(self, contents: Contents, before: S | None) -> S:
        """Return the contents after a layer's first forward, or after an eviction, as stored.

        `before` is what was stored before this forward; None if this is the first.
        """

    def extend(self, stored: S, contents: Contents) -> None:
        """Add to `stored` the rows that `contents` has behind those that were loaded."""

    def load(self, stored: S) -> Contents:
        """Return the contents as the model computes with them; `stored` stays as it is."""

    def prefetch(self, stored: S) -> None:
        """Begin to bring the contents to the device, if that helps."""


AnyStorage = Storage[Any]
"""A storage, whatever the class of its stored form."""
