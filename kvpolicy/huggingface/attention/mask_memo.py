"""What was found out about the masks of a forward, for all layers that share them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers.masking_utils import causal_mask_function

from kvpolicy.cache.memory.padding import padding_counts
from kvpolicy.cache.memory.slots import Slots
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.huggingface.attention.graphs import between_graphs
from kvpolicy.huggingface.attention.masks import (
    NEEDS_2D,
    check_causal,
    check_given_mask,
    new_real_tokens,
)
from kvpolicy.pipeline.pipeline import Pipeline

_thread = threading.local()


class Note(NamedTuple):
    """A mask that was built: the 2D mask it was built of, and whether it is plainly causal."""

    mask: weakref.ref[Any] | None
    given: Bool[Tensor, "B T"] | None
    plain: bool

    def is_of(self, mask: Any) -> bool:
        """Whether this is the note of `mask`."""
        return mask is None if self.mask is None else self.mask() is mask


class MaskMemo:
    """What was found out about a mask, so that the layers that share it find it out once."""

    def __init__(self) -> None:
        """Know nothing."""
        self.notes: list[Note] = []
        self._grows = self._is_prepared = False
        self.begin()

    def begin(self) -> None:
        """Forget what was found out in earlier forwards: a mask may have been written to since."""
        self._is_generating, self._is_prepared = self._is_prepared, False
        self._mask: weakref.ref[Any] | None = None
        self._causal: weakref.ref[Any] | None = None
        self._before: list[int] = []
        self._without: tuple[list[int], int] | None = None
        self._is_plain = False
        self._judged = 0
        self._real: Bool[Tensor, "B Q"] | None = None
        self._counted: tuple[Bool[Tensor, "B Q"], list[int]] | None = None

    def prepared(self, *, anew: bool) -> None:
        """Know that `generate` prepares the next forward, the first one of a text if `anew`.

        The 2D masks that it makes only grow. So the first is looked at, and those behind it are
        not: to look at each would wait for the device each time.
        """
        self._is_prepared = True
        self._grows &= not anew

    def expect(self) -> None:
        """Take a note of the mask that is built next in this thread."""
        _thread.memo = weakref.ref(self)

    def expect_step(self, check: Callable[[Bool[Tensor, "B T"]], None]) -> None:
        """Have a method see the 2D mask of a static step, if one is built next in this thread."""
        self._is_generating, self._is_prepared = self._is_prepared, False
        is_known = self._grows and self._is_generating
        _thread.check = None if is_known else weakref.WeakMethod(check)

    def saw_step(self) -> None:
        """Know that the 2D mask of a step was looked at."""
        self._grows = self._is_generating

    def new_real_tokens(
        self, mask: Any, slots: Slots, length: int, *, held: int, seen: int, policy: Pipeline
    ) -> Bool[Tensor, "B Q"] | None:
        """Return which of the `length` new tokens are real; None if all are.

        The mask is read once for all layers that share it. `held` are the columns of the longest
        head, and `seen` the tokens of the layer, new ones included.

        Raises InvalidValueError for a mask that contradicts how earlier tokens were read, and for
        one whose last rows are not plainly causal, where `policy` needs them to be.
        """
        before = [count - length for count in slots.seen]
        note = next((each for each in reversed(self.notes) if each.is_of(mask)), None)
        self.notes.clear()
        if note is not None and (length > 1 or not (self._grows and self._is_generating)):
            read = None if slots.columns is None else slots.read(seen - length)
            check_given_mask(note.given, before, seen - length, read)
            self._grows = self._is_generating
        if mask is None:
            if self._without != (before, held):
                self._real = new_real_tokens(None, before, length, held)
                self._without, self._mask = (before, held), None
            return self._real
        if self._mask is None or self._mask() is not mask or self._before != before:
            _check_shape(mask, slots.batch, length, held)
            read = None if slots.columns is None else slots.read(seen - length)
            self._real = new_real_tokens(mask, before, length, mask.shape[-1], read)
            self._mask, self._before, self._without = weakref.ref(mask), before, None
            self._is_plain, self._judged = note is not None and note.plain, 0
            if self._real is not None and not self._is_plain and any(before):
                raise InvalidValueError(NEEDS_2D)
        # Layers that share a mask may have evicted or not.
        if not self._is_plain:
            judged = judged_rows(policy, slots, length, has_evicted=held < seen)
            if judged > self._judged:
                self._check_rows(mask, slots, judged)
                self._judged = judged
        return self._real

    def check_plain(self, mask: Any) -> None:
        """Raise UnsupportedModelError unless a mask was built to be plainly causal."""
        if mask is None:
            return
        if self._mask is None or self._mask() is not mask or self._before:
            note = next((each for each in reversed(self.notes) if each.is_of(mask)), None)
            self._mask, self._before = weakref.ref(mask), []
            self._is_plain = note is not None and note.plain
            self.notes.clear()
        if not self._is_plain:
            raise UnsupportedModelError(
                "assisted decoding and prompt look-up need a model whose full attention is plainly "
                "causal. This model's mask has a rule of its own, or was given ready. Generate "
                "without drafts."
            )

    def padding(self, real: Bool[Tensor, "B Q"]) -> list[int]:
        """Return how many of the new tokens of each row are padding, counted once for a mask.

        Raises InvalidValueError as `padding_counts` does.
        """
        if self._counted is None or self._counted[0] is not real:
            self._counted = real, padding_counts(real)
        return self._counted[1]

    def _check_rows(self, mask: Any, slots: Slots, judged: int) -> None:
        """Compare the last rows of a mask whole."""
        # A mask that was built has a column for each slot, a ready one has one for each token.
        lengths = slots.lengths if mask.shape[-1] == slots.held else slots.seen
        if self._real is not None:
            pads: list[int] = (~self._real).sum(1).tolist()
            lengths = [length - pad for length, pad in zip(lengths, pads, strict=True)]
        remedy = "Give a 2D attention_mask, or none."
        check_causal(mask, lengths, "an evicted cache", remedy, judged=judged)

    def check_causal(self, mask: Any, lengths: list[int]) -> None:
        """Find out once for all layers whether a prompt's mask only hides padding."""
        if mask is not None and (self._causal is None or self._causal() is not mask):
            check_causal(mask, lengths, "sparse prefill", "Use prefill=None.")
            self._causal = weakref.ref(mask)


def _check_shape(mask: Any, batch: int, length: int, held: int) -> None:
    """Raise InvalidValueError for a ready mask that is none of `length` new tokens.

    `held` are the slots that its columns must cover at least, new tokens included.
    """
    if not isinstance(mask, Tensor) or mask.dim() == 2:
        return
    fits = mask.dim() == 4 and mask.shape[0] in (1, batch) and mask.shape[2] == length
    if (
        not fits
        or mask.shape[3] < held
        or not (mask.dtype == torch.bool or mask.is_floating_point())
    ):
        raise InvalidValueError(
            f"a ready attention_mask is bool or float, of the shape [{batch}, 1, {length}, tokens] "
            f"with a column for every token read, but this one is {mask.dtype} {[*mask.shape]}."
        )


def judged_rows(policy: Pipeline, slots: Slots, count: int, *, has_evicted: bool) -> int:
    """Return how many of the last rows of a mask for `count` new tokens must be causal.

    Before any eviction the model's own mask is used as it is. Then only the queries that the scorer
    is shown must see what the scorer computes that they see.
    """
    if has_evicted:
        return count
    if all(map(policy.keeps_all, slots.newest if policy.per_turn else slots.seen)):
        return 0
    window = policy.window
    if window is None or policy.running_scorer is not None:
        return count
    return min(window, count)


def noted(build: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that builds masks, and takes a note of each for the cache that expects it.

    The mask that is built has fewer columns than the 2D mask once tokens are evicted.
    """

    def mask(*args: Any, **kwargs: Any) -> Any:
        # Only a static cache counts on the device. Nobody expects a note of its steps.
        if kwargs.get("q_length") == 1 and isinstance(kwargs.get("q_offset"), Tensor):
            if not torch.compiler.is_compiling():
                _check_step(kwargs.get("attention_mask"))
            return build(*args, **kwargs)
        return _noted(build, *args, **kwargs)

    return mask


def _check_step(mask: Any) -> None:
    expecting, _thread.check = getattr(_thread, "check", None), None
    check = None if expecting is None else expecting()
    if check is not None and mask is not None:
        check(mask)


@between_graphs
def _noted(build: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    expecting, _thread.memo = getattr(_thread, "memo", None), None
    memo = None if expecting is None else expecting()
    built = build(*args, **kwargs)
    if memo is not None:
        rule = kwargs.get("mask_function", causal_mask_function)
        memo.notes.append(
            Note(
                mask=None if built is None else weakref.ref(built),
                given=kwargs.get("attention_mask"),
                plain=rule is causal_mask_function,
            )
        )
    return built
