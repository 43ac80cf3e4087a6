"""Rows of keys or values with room to grow."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Int, Shaped
from torch import Tensor, is_inference_mode_enabled


def _owned(first: Shaped[Tensor, "B N S D"]) -> Shaped[Tensor, "B N S D"]:
    first = first.contiguous()
    # A view would keep alive the memory that it is a view of.
    return first if first.untyped_storage().nbytes() == first.nbytes else first.clone()


@attrs.define(eq=False)
class Rows:
    """A buffer [B, N, C, D] whose first `held` rows are in use.

    The first rows are taken over as they are, without slack. A full buffer grows by 1/16 of its
    rows, and by at least 16. See `fits` for how much slack is allowed after rows were removed.
    """

    buffer: Shaped[Tensor, "B N C D"] = attrs.field(converter=_owned)
    held: int = attrs.field(init=False)

    @held.default
    def _all_of_the_first(self) -> int:
        return self.buffer.shape[2]

    @property
    def view(self) -> Shaped[Tensor, "B N S D"]:
        """The rows in use; a new tensor object each time."""
        return self.buffer.narrow(2, 0, self.held)

    def behind(self, held: int) -> Shaped[Tensor, "B N Q D"]:
        """Return the rows in use behind the first `held`."""
        return self.buffer.narrow(2, held, self.held - held)

    @property
    def nbytes(self) -> int:
        """Bytes allocated, slack included."""
        return self.buffer.nbytes

    def append(self, new: Shaped[Tensor, "B N Q D"]) -> None:
        """Write new rows behind those in use.

        Rows that need gradients are joined to new memory: a backward pass needs the old rows.
        """
        needed = self.held + new.shape[2]
        if self.buffer.requires_grad or new.requires_grad:
            self.buffer, self.held = torch.cat([self.view, new], 2), needed
            return
        if needed > self.buffer.shape[2] or self._is_locked:
            self._grow(needed + max(16, needed // 16))
        self.buffer.narrow(2, self.held, new.shape[2]).copy_(new)
        self.held = needed

    def move(self, source: Int[Tensor, "B S"]) -> None:
        """Let each row in use take the place that `source` says, in new memory."""
        places = source[:, None, :, None].to(self.buffer.device)
        self.buffer = self.view.gather(
            2, places.expand(*self.view.shape[:2], -1, self.view.shape[3])
        )

    def truncate(self, held: int) -> None:
        """Forget all rows but the first `held`."""
        self.held = held

    def select_rows(self, batch: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        self.buffer = self.view.index_select(0, batch.to(self.buffer.device))

    def fits(self, held: int) -> bool:
        """Whether the buffer may keep `held` rows: its slack is small and it may be written to.

        Small is at most an eighth of `held`, or 32 rows.
        """
        slack = self.buffer.shape[2] - held
        if self.buffer.requires_grad:
            return False
        return slack <= max(32, held // 8) and not self._is_locked

    @property
    def _is_locked(self) -> bool:
        """Whether the buffer was made in inference mode, so that it may not be written to now."""
        return self.buffer.is_inference() and not is_inference_mode_enabled()

    def _grow(self, capacity: int) -> None:
        batch, heads, _, dim = self.buffer.shape
        buffer = torch.empty(
            (batch, heads, capacity, dim), dtype=self.buffer.dtype, device=self.buffer.device
        )
        buffer[:, :, : self.held] = self.view
        self.buffer = buffer
