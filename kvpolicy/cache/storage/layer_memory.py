"""One layer's contents: as the model computes with them, or as a storage keeps them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.saved import SAVED
from kvpolicy.cache.storage.protocol import AnyStorage, Stored


@attrs.define(eq=False)
class LayerMemory:
    """The contents of one layer; without a storage they stay as they are.

    With a storage, `contents` is there during a forward only, and `stored` is there between
    forwards.
    """

    storage: AnyStorage | None = None
    contents: Contents | None = attrs.field(metadata=SAVED, default=None)
    stored: Any = attrs.field(metadata=SAVED, default=None)

    @property
    def layout(self) -> Contents | None:
        """The contents; if they are stored, their rows may be in another form."""
        if self.contents is None and self.stored is not None:
            layout: Contents = self.stored.layout
            return layout
        return self.contents

    @property
    def owned(self) -> Contents | Stored | None:
        """What takes memory now."""
        return self.stored if self.contents is None else self.contents

    def loaded(self) -> Contents | None:
        """Return the contents as the model computes with them; None if there are none."""
        if self.contents is None and self.stored is not None and self.storage is not None:
            return self.storage.load(self.stored)
        return self.contents

    def restorer(self) -> Callable[[], None]:
        """Return a function that takes back what `with_new` is about to change."""
        contents = self.contents
        if contents is None:

            def forget() -> None:
                self.contents = None

            return forget
        slots, tables = contents.slots.copied(), (contents.keys, contents.values)
        before = [(table.buffer, table.held) for table in tables]

        def restore() -> None:
            contents.slots, self.contents = slots, contents
            for table, (buffer, held) in zip(tables, before, strict=True):
                table.buffer, table.held = buffer, held

        return restore

    def with_new(
        self, keys: Float[Tensor, "B N Q D"], values: Float[Tensor, "B N Q Dv"]
    ) -> Contents:
        """Return the contents with the keys and values of new tokens behind them."""
        contents = self.loaded()
        if contents is None:
            contents = Contents.of(keys, values)
        else:
            contents.append(keys, values)
        self.contents = contents
        return contents

    def put_away(self, *, evicted: bool = False) -> None:
        """Leave the contents to the storage, if there is one, until the next forward."""
        if self.storage is None or self.contents is None:
            return
        with torch.no_grad():
            if self.stored is None or evicted:
                self.stored = self.storage.store(self.contents, self.stored)
            else:
                self.storage.extend(self.stored, self.contents)
        self.contents = None

    def prefetch(self) -> None:
        """Begin to bring the contents to the device."""
        if self.storage is not None and self.stored is not None:
            self.storage.prefetch(self.stored)

    def is_consistent(self, seen: int) -> bool:
        """Whether all that is held fits together, after `seen` tokens."""
        if self.contents is not None and self.stored is not None:
            return False
        contents = self.loaded()
        return seen == 0 if contents is None else contents.is_consistent(seen)
