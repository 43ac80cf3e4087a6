"""Attach caches to their models: which attention is observed, and for how long."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import attrs
from transformers import PreTrainedModel

from kvpolicy.errors import CacheStateError
from kvpolicy.huggingface.attention.call import observed
from kvpolicy.huggingface.attention.mask_memo import noted
from kvpolicy.huggingface.attention.points import Point, Wrap, attention_points, mask_points
from kvpolicy.huggingface.model.config import decoder_config

_lock = threading.RLock()
_users: dict[Point, weakref.WeakSet[Any]] = {}


@attrs.frozen(eq=False)
class Attachment:
    """The places in which one model's attention is observed for its caches."""

    attention: str
    """The name of the attention implementation, as the model's config has it."""
    points: tuple[tuple[Point, Wrap], ...]

    def open(self, cache: object) -> None:
        """Observe the attention of calls on this cache's keys."""
        with _lock:
            for point, wrap in self.points:
                point.add(wrap)
                _users.setdefault(point, weakref.WeakSet()).add(cache)
        # A cache that is dropped without being closed leaves the model as it was found, too.
        weakref.finalize(cache, self._remove_unused)

    def close(self, cache: object) -> None:
        """Stop observing; a place without open caches has what was found there."""
        with _lock:
            for point, _ in self.points:
                _users.get(point, weakref.WeakSet()).discard(cache)
            self._remove_unused()

    def is_open(self, cache: object) -> bool:
        """Whether calls on this cache's keys are observed."""
        with _lock:
            return all(
                cache in _users.get(point, ()) and point.has(wrap) for point, wrap in self.points
            )

    def _remove_unused(self) -> None:
        with _lock:
            for point, wrap in self.points:
                if not _users.get(point):
                    point.remove(wrap)

    def check(self, cache: object, attention: str) -> None:
        """Raise CacheStateError unless calls on this cache's keys are observed.

        `attention` is the name of the implementation that the model's config has now.
        """
        if attention != self.attention:
            raise CacheStateError(
                f"the model's attention was changed from {self.attention!r} to {attention!r} while "
                "this cache was in use. Change it back, or make a new cache: policy.cache(model)."
            )
        if not self.is_open(cache):
            raise CacheStateError(
                "this cache was closed, by kvpolicy.restore(model) or by leaving its `with` block: "
                "eviction cannot observe the model. Use the cache inside its `with`, or make a new "
                "one: policy.cache(model)."
            )


def attachment(model: PreTrainedModel) -> Attachment:
    """Return where a model's attention can be observed; nothing is changed yet."""
    config = decoder_config(model)
    name = config._attn_implementation or "eager"
    attention = [(point, observed) for point in attention_points(model.modules(), config)]
    return Attachment(name, (*attention, *((point, noted) for point in mask_points(config))))
