"""The token ids that `generate` has read into a cache, which the next prompt must begin with."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from kvpolicy.errors import InvalidValueError

_CURE = (
    "A cache cannot take back what it has read. Call cache.reset() and give the whole prompt, or "
    "go on with a copy that was made before (cache.clone())."
)


class ReadTokens:
    """Remembers the ids of the first tokens of each row, as far as they are known.

    `generate` is given all ids and returns all ids, so they are noted when it is done: 4 bytes for
    each token, and nothing for a decoded token. Tokens that a plain forward reads are not known.
    """

    def __init__(self) -> None:
        """Know nothing."""
        self.ids: Int[Tensor, "B T"] | None = None
        self._before: Int[Tensor, "B T"] | None = None
        self.moved = False
        """Whether rows were taken since `begin`."""

    def clear(self) -> None:
        """Know nothing any more."""
        self.ids = self._before = None
        self.moved = True

    def truncate(self, seen: int) -> None:
        """Forget all tokens but the first `seen`."""
        if self.ids is not None:
            self.ids = self.ids[:, :seen]

    def select_rows(self, rows: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        self.moved = True
        if self.ids is not None:
            self.ids = self.ids.index_select(0, rows.to(self.ids.device))

    def begin(self) -> None:
        """Know nothing while `generate` runs: beams change places with every token."""
        self.ids, self._before, self.moved = None, self.ids, False

    def stop(self) -> None:
        """Learn that `generate` raised: what was known of the first tokens still holds."""
        self.ids, self._before = None if self.moved else self._before, None

    def note(self, new: Int[Tensor, "B L"] | None, seen: int, *, first: int) -> None:
        """Learn the ids of the tokens from place `first` on, of which `seen` have been read."""
        self.stop()
        if self.moved or new is None:
            return
        if first == 0:
            self.ids = new[:, :seen].to(torch.int32, copy=True)
        elif self.ids is not None and self.ids.shape == (new.shape[0], first):
            self.ids = torch.cat([self.ids, new.to(torch.int32)], 1)[:, :seen]

    def check(self, given: Int[Tensor, "B L"], mask: Any, seen: int) -> None:
        """Raise InvalidValueError if a whole prompt does not begin with what was read.

        Waits for the device, once for each prompt. Places that the mask hides do not count.
        """
        if given.shape[1] <= seen:
            raise InvalidValueError(
                f"the prompt has {given.shape[1]} tokens, but this cache has read {seen}, so the "
                "prompt does not go on from them. generate takes the whole text: what was read, "
                f"the answer, and the new tokens. {_CURE}"
            )
        if self.ids is None or self.ids.shape[0] % given.shape[0]:
            return
        length, times = self.ids.shape[1], self.ids.shape[0] // given.shape[0]
        old = given[:, :length].repeat_interleave(times, 0).to(self.ids.device)
        differs = old != self.ids
        if isinstance(mask, Tensor):
            seen_of_old = mask[:, :length].bool().to(differs.device)
            differs &= seen_of_old.repeat_interleave(times, 0)
        if bool(differs.any()):
            row, place = differs.nonzero()[0].tolist()
            raise InvalidValueError(
                f"row {row} of the prompt differs from what this cache has read: token {place} was "
                f"{int(self.ids[row, place])}, and is {int(old[row, place])} now. {_CURE}"
            )
