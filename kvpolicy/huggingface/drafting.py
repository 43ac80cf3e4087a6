"""`generate` with drafts: the cache is told where the prompt ends, or the reason of a refusal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import Cache, __version__

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.huggingface.drafts import (
    FEATURE,
    REFUSED_SETTINGS,
    SETTINGS,
    UNKNOWN_END,
    check_drafts,
)
from kvpolicy.huggingface.settings import setting


@contextmanager
def drafts_announced(
    model: Any, cache: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, end: int | None
) -> Iterator[None]:
    """Let a cache know that tokens behind the first `end` are drafts, if this call drafts any.

    The cache of a draft model stays as it is told: its next call goes on from the accepted tokens.
    Raises UnsupportedModelError, before any work, for drafts that could not be taken back.
    """
    drafts, before = cache.session.drafts, cache.seen
    is_draft_model = bool(setting(model, args, kwargs, "is_assistant"))
    if not is_draft_model and not _drafts(model, args, kwargs):
        yield
        return
    if not is_draft_model or drafts.end is None:
        if end is None:
            raise UnsupportedModelError(UNKNOWN_END)
        _refuse_padding(kwargs.get("attention_mask"))
        if hasattr(cache, "capacity"):
            raise UnsupportedModelError(
                f"{FEATURE} take drafted tokens back, which a cache of fixed size cannot do. Use "
                "static=False, or generate without drafts."
            )
        if not hasattr(Cache, "activate_past_recording"):
            raise UnsupportedModelError(
                f"{FEATURE} take drafted tokens back, which caches of transformers {__version__} "
                "cannot do. Use a newer transformers, or generate without drafts."
            )
        check_drafts(cache.session)
        drafts.end = end
        cache.activate_past_recording()
    try:
        yield
    except BaseException as error:
        # Drafts may have been read that nobody has taken back.
        if cache.seen != before:
            cache.session.guard.failed(error)
        raise
    finally:
        if not is_draft_model:
            drafts.end = None
            _stop_recording(cache.layers)


def only_new_tokens(cache: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return what makes the first forward with drafts read only what the cache has not read.

    transformers 5.23 gives that forward the whole text, also in a second turn.
    """
    ids, seen = args[0] if args else kwargs.get("input_ids"), cache.seen
    given = kwargs.get("next_sequence_length", 0)
    if cache.session.drafts.end is None or given is not None or not seen or ids is None:
        return {}
    return {"next_sequence_length": ids.shape[1] - seen}


def _drafts(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether tokens are drafted; raises UnsupportedModelError for ways that are not served."""
    for name in REFUSED_SETTINGS:
        if setting(model, args, kwargs, name):
            raise UnsupportedModelError(
                f"generate was called with {name}, which drafts with layers of the model itself; a "
                f"cache cannot follow that. Served are {' and '.join(SETTINGS)}."
            )
    return any(setting(model, args, kwargs, name) for name in SETTINGS)


def _refuse_padding(mask: Any) -> None:
    if isinstance(mask, Tensor) and not bool(mask.all()):
        raise UnsupportedModelError(
            f"{FEATURE} read one prompt, and its attention_mask hides some of its tokens. Give the "
            "prompt without padding."
        )


def _stop_recording(layers: Any) -> None:
    """Let layers with a window forget again what left it."""
    for layer in layers:
        if hasattr(layer, "record_past"):
            layer.record_past = False
