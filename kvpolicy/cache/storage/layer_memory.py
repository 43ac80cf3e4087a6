"""One layer's contents: as the model computes with them, or as a storage keeps them."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.saved import SAVED
from kvpolicy.cache.storage.protocol import AnyStorage, Stored
from kvpolicy.errors import InvalidValueError


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

    def with_new(self, keys: Float[Tensor, ...], values: Float[Tensor, ...]) -> Contents:
        """Return the contents with keys [B, N, Q, D] and values [B, N, Q, Dv] of new tokens.

        Raises InvalidValueError, before anything is written, for tensors that do not fit.
        """
        self.check_new(keys, values)
        contents = self.loaded()
        if contents is None:
            contents = Contents.of(keys, values)
        else:
            contents.append(keys, values)
        self.contents = contents
        return contents

    def check_batch(self, rows: int) -> None:
        """Raise InvalidValueError for a forward with another number of sequences than are held."""
        layout = self.layout
        if layout is not None and rows != layout.slots.batch:
            raise InvalidValueError(
                f"this conversation has {layout.slots.batch} rows, but {rows} rows were given. Use "
                "cache.batch_repeat_interleave(n) or cache.batch_select_indices(rows), or make a "
                "new cache."
            )

    def check_new(self, keys: Tensor, values: Tensor) -> None:
        """Raise InvalidValueError for keys and values of new tokens that do not fit."""
        layout = self.layout
        if keys.dim() != 4 or values.dim() != 4 or keys.shape[:3] != values.shape[:3]:
            raise InvalidValueError(
                f"the keys of a layer are {tuple(keys.shape)} and its values "
                f"{tuple(values.shape)}. Both must be (batch, heads, tokens, channels), with the "
                "same batch, heads and tokens."
            )
        if layout is None:
            return
        slots, (rows, heads) = layout.slots, keys.shape[:2]
        self.check_batch(rows)
        if heads != slots.heads:
            raise InvalidValueError(
                f"a layer has {slots.heads} key/value heads in this cache, but {heads} heads were "
                "given. Make a cache for this model."
            )
        if self.storage is not None:
            return  # the layout says nothing of channels and dtypes
        for name, new, held in (("keys", keys, layout.keys), ("values", values, layout.values)):
            had = held.buffer
            if (new.shape[-1], new.dtype) != (had.shape[-1], had.dtype):
                raise InvalidValueError(
                    f"a layer holds {name} of {had.shape[-1]} channels in {had.dtype}, but "
                    f"{new.shape[-1]} channels in {new.dtype} were given. Use one model and one "
                    "dtype for all of a conversation."
                )

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
