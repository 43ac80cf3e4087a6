"""What was found out about the masks of a forward, for all layers that share them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from kvpolicy.cache.memory.slots import Slots
from kvpolicy.huggingface.attention.graphs import between_graphs
from kvpolicy.huggingface.attention.masks import (
    check_causal,
    check_given_mask,
    new_real_tokens,
)

_thread = threading.local()


class MaskMemo:
    """What was found out about a mask, so that the layers that share it find it out once.

    `given` is the 2D mask from which this forward's masks were built, in a tuple; None where no
    mask was built. It is noted by `noted`.
    """

    def __init__(self) -> None:
        """Know nothing."""
        self.given: tuple[Tensor | None] | None = None
        self._mask: weakref.ref[Any] | None = None
        self._causal: weakref.ref[Any] | None = None
        self._before: list[int] = []
        self._real: Bool[Tensor, "B Q"] | None = None

    def expect(self) -> None:
        """Note the 2D mask of the mask that is built next in this thread."""
        self.given, _thread.memo = None, weakref.ref(self)

    def new_real_tokens(
        self, mask: Any, slots: Slots, length: int, *, held: int, seen: int
    ) -> Bool[Tensor, "B Q"] | None:
        """Return which of the `length` new tokens are real; None if all are.

        The mask is read once for all layers that share it. `held` are the columns of the longest
        head, and `seen` the tokens of the layer, new ones included.

        Raises InvalidValueError for a mask that contradicts how earlier tokens were read.
        """
        before = [count - length for count in slots.seen]
        given, self.given = self.given, None
        # The 2D mask of a decoded token only grows.
        if given is not None and length > 1:
            check_given_mask(given[0], before, seen - length)
        if mask is None:
            return new_real_tokens(None, before, length, held)
        if self._mask is None or self._mask() is not mask or self._before != before:
            self._real = new_real_tokens(mask, before, length, mask.shape[-1])
            self._mask, self._before = weakref.ref(mask), before
        return self._real

    def check_causal(self, mask: Any, lengths: list[int]) -> None:
        """Find out once for all layers whether a prompt's mask only hides padding."""
        if mask is not None and (self._causal is None or self._causal() is not mask):
            check_causal(mask, lengths)
            self._causal = weakref.ref(mask)


def noted(build: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that builds masks, and notes the 2D mask for the cache that expects it.

    The mask that is built has fewer columns than the 2D mask once tokens are evicted.
    """

    @between_graphs
    def mask(*args: Any, **kwargs: Any) -> Any:
        expecting, _thread.memo = getattr(_thread, "memo", None), None
        memo = None if expecting is None else expecting()
        if memo is not None:
            memo.given = (kwargs.get("attention_mask"),)
        return build(*args, **kwargs)

    return mask
