"""A policy that is applied to a model: every `generate` inside a block gets a cache of its own."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any, Self

from transformers import PreTrainedModel

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.huggingface.attention.attach import is_open
from kvpolicy.huggingface.attention.points import Point, method_point
from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.huggingface.cache_argument import cache_in, cache_of, handed
from kvpolicy.huggingface.generation import checked_generate
from kvpolicy.huggingface.model.adapters import plain_model
from kvpolicy.huggingface.report import CacheReport, table_of
from kvpolicy.huggingface.settings import setting

_lock = threading.RLock()
_blocks: list[tuple[int, Applied]] = []
"""Every block that is entered, with the thread that entered it; the latest is last."""


class Applied:
    """Gives every `generate` of one model a new cache, while its block is entered.

    `reports` has a report for each `generate` that returned, and printing gives a table of them. A
    thread uses the latest block that it has entered itself, otherwise the latest of all threads: so
    it serves `generate` in a thread for a streamer. Left alone are a `generate` that is given a
    cache, plain forwards, and `generate_batch`.
    """

    def __init__(self, model: Any, new_cache: Callable[[], PolicyCache]) -> None:
        """Take a model and what makes caches for it; the model is not changed yet.

        Raises UnsupportedModelError for a model that has no `generate` or that is refused a cache.
        """
        self._model: PreTrainedModel = plain_model(model)
        if not hasattr(self._model, "generate"):
            raise UnsupportedModelError(
                f"{type(self._model).__name__} has no method generate, so there is nothing to give "
                "a cache to. Load the model with a language head, or use policy.cache(model)."
            )
        new_cache().close()
        self._new_cache = new_cache
        self._returned: weakref.WeakSet[PolicyCache] = weakref.WeakSet()
        self.reports: list[CacheReport] = []

    def __enter__(self) -> Self:
        """Begin to give caches."""
        with _lock:
            _blocks.append((threading.get_ident(), self))
            self._point.add(_applied)
        return self

    def __exit__(self, *raised: object) -> None:
        """Leave the model as it was found, and close the caches that `generate` returned."""
        with _lock:
            places = [place for place, (_, block) in enumerate(_blocks) if block is self]
            own = [each for each in places if _blocks[each][0] == threading.get_ident()]
            del _blocks[(own or places)[-1]]
            if all(block._point is not self._point for _, block in _blocks):
                self._point.remove(_applied)
            left = all(block is not self for _, block in _blocks)
        for cache in list(self._returned) if left else ():
            cache.close()

    @property
    def _point(self) -> Point:
        return method_point(type(self._model), "generate")

    def __str__(self) -> str:
        """Return the table."""
        return table_of(self.reports)

    def serves(self, model: object) -> bool:
        """Whether this block is for `model`."""
        return self._model is model

    def generated(self, own: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Call `generate` with a new cache, and take its report.

        Raises UnsupportedModelError, before any work, for what no policy can serve.
        """
        _refuse_what_needs_no_cache_of_ours(self._model, args, kwargs)
        cache = self._new_cache()
        kwargs = kwargs | handed(cache, to=own)
        try:
            result = checked_generate(is_open, own)(self._model, *args, **kwargs)
        except BaseException:
            cache.close()
            raise
        self.reports.append(cache.report())
        if cache_of(result) is cache:
            self._returned.add(cache)
        else:
            cache.close()
        return result


def _refuse_what_needs_no_cache_of_ours(model: Any, args: Any, kwargs: dict[str, Any]) -> None:
    if setting(model, args, kwargs, "use_cache") is False:
        raise UnsupportedModelError(
            "generate was called with use_cache=False where a policy is applied: it would read the "
            "whole text again for every token, and nothing could be evicted. Leave use_cache out, "
            "or generate outside of the block."
        )
    kind = setting(model, args, kwargs, "cache_implementation")
    if kind is not None:
        raise UnsupportedModelError(
            f"generate was called with cache_implementation={kind!r} where a policy is applied, "
            "which gives it a cache. Leave cache_implementation out (of generation_config, too), "
            "or generate outside of the block."
        )


def _applied(own: Callable[..., Any]) -> Callable[..., Any]:
    """Return `generate` that is given a cache by the block that is in force."""

    @functools.wraps(own)
    def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
        block = None if cache_in(kwargs) is not None else _block_of(model)
        if block is None:
            return own(model, *args, **kwargs)
        return block.generated(own, args, kwargs)

    return generate


def _block_of(model: object) -> Applied | None:
    with _lock:
        mine = [(thread, block) for thread, block in _blocks if block.serves(model)]
    own = [block for thread, block in mine if thread == threading.get_ident()]
    every = own or [block for _, block in mine]
    return every[-1] if every else None
