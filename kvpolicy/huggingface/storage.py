"""What a layer holds, with room to grow, so that a decoded token costs one row, not a copy."""

from __future__ import annotations

import attrs
from jaxtyping import Float
from torch import Tensor, is_inference_mode_enabled

from kvpolicy.huggingface.slots import Slots


class Rows:
    """[B, N, C, D] preallocated rows, of which the first `held` are in use.

    The slack is bounded: a full buffer grows by 1/16, at least 16 rows.
    """

    def __init__(self, first: Float[Tensor, "B N S D"]) -> None:
        """Take over the first rows as they are; there is no slack until the first append."""
        first = first.contiguous()
        # A view would keep alive what it is a view of.
        owned = first.untyped_storage().nbytes() == first.nbytes
        self.buffer = first if owned else first.clone()
        self.held = first.shape[2]

    @property
    def view(self) -> Float[Tensor, "B N S D"]:
        """The rows in use; a new tensor object each time."""
        return self.buffer.narrow(2, 0, self.held)

    @property
    def nbytes(self) -> int:
        """Bytes allocated, slack included."""
        return self.buffer.nbytes

    def append(self, new: Float[Tensor, "B N Q D"]) -> None:
        """Write new rows behind those in use."""
        needed = self.held + new.shape[2]
        # A buffer made in inference mode may not be written to outside it: it is copied once.
        locked = self.buffer.is_inference() and not is_inference_mode_enabled()
        if needed > self.buffer.shape[2] or locked:
            self._grow(needed + max(16, needed // 16))
        self.buffer.narrow(2, self.held, new.shape[2]).copy_(new)
        self.held = needed

    def truncate(self, held: int) -> None:
        """Forget all rows but the first `held`."""
        self.held = held

    def select_rows(self, batch: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        self.buffer = self.view.index_select(0, batch.to(self.buffer.device))

    def _grow(self, capacity: int) -> None:
        batch, heads, _, dim = self.buffer.shape
        buffer = self.buffer.new_empty((batch, heads, capacity, dim))
        buffer[:, :, : self.held] = self.view
        self.buffer = buffer


@attrs.define
class Contents:
    """What a layer holds: rows of keys and values, and the token of each."""

    keys: Rows
    values: Rows
    slots: Slots

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.keys.nbytes + self.values.nbytes + self.slots.nbytes
