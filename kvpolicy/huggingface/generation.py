"""`generate` with a cache of ours: it must use the cache that it is given, or refuse."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.huggingface.cache_argument import NAMES, cache_in, handed, name_for, renamed
from kvpolicy.huggingface.drafting import drafts_announced, only_new_tokens
from kvpolicy.huggingface.model.adapters import check_no_virtual_tokens
from kvpolicy.huggingface.settings import setting

DEFAULT_NEW_TOKENS = 20
"""How many tokens transformers generates where nothing says how many."""


def checked_inputs(
    is_ours: Callable[[object], bool], own: Callable[..., Any]
) -> Callable[..., Any]:
    """Return `prepare_inputs_for_generation` that keeps a cache of ours, or refuses."""
    name = name_for(own)

    @functools.wraps(own)
    def prepare(model: Any, *args: Any, **kwargs: Any) -> Any:
        cache = cache_in(kwargs)
        if is_ours(cache):
            kwargs = renamed(kwargs | only_new_tokens(cache, args, kwargs), name)
            cache.session.masks.prepared(anew=bool(kwargs.get("is_first_iteration", False)))
        inputs = own(model, *args, **kwargs)
        if not is_ours(cache):
            return inputs
        if kwargs.get("use_cache") is False:
            raise UnsupportedModelError(
                "generate was called with use_cache=False and a cache: it would feed the "
                "whole text into the cache again for every token. Leave use_cache out."
            )
        if cache_in(inputs) is not cache:
            _check_nothing_is_read(model, cache)
        # The code of a checkpoint may have another name than transformers.
        others = {key: value for key, value in inputs.items() if key not in NAMES}
        return others | handed(cache, to=model)

    return prepare


def _check_nothing_is_read(model: Any, cache: Any) -> None:
    """Refuse inputs that dropped the cache, unless the model reads all tokens anyway."""
    if cache.seen > 0:
        raise UnsupportedModelError(
            f"{type(model).__name__} drops its cache here, to read the whole text again. Models "
            "with longrope do so where the text grows beyond original_max_position_embeddings. "
            "What was evicted cannot be read again. Start over with a prompt that is longer than "
            "that, or keep prompt and answer below it."
        )


def checked_generate(
    is_ours: Callable[[object], bool], own: Callable[..., Any]
) -> Callable[..., Any]:
    """Return `generate` that refuses a prompt which does not go on from what our cache has read.

    It also refuses to return a text which did not come out of that cache.
    """
    name = name_for(own)

    @functools.wraps(own)
    def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_two_caches(is_ours, kwargs)
        cache = cache_in(kwargs)
        if not is_ours(cache):
            return own(model, *args, **kwargs)
        cache.session.guard.check()
        check_no_virtual_tokens(model)
        kwargs = renamed(kwargs, name)
        before, ids = cache.seen, _ids_of(args, kwargs)
        mask = kwargs.get("attention_mask")
        # A mask that is longer than the ids says that they are the new tokens only.
        whole = ids is not None and (mask is None or mask.shape[1] == ids.shape[1])
        if before and whole:
            cache.read_tokens.check(ids, mask, before)
        new = _length_of(args, kwargs, ids) - (before if whole else 0)
        cache.check_room(new, _most_new_tokens(model, args, kwargs, ids))
        end = None if ids is None else ids.shape[1] + (0 if whole else before)
        drafting = drafts_announced(model, cache, args, kwargs, end=end)
        first = None if before else _given(kwargs, ids)
        cache.read_tokens.begin()
        try:
            with drafting, cache.session.first_prompt(first, mask):
                result = own(model, *args, **kwargs)
        except BaseException:
            cache.read_tokens.stop()
            raise
        _note(cache, None if ids is None else result, first=0 if whole else before)
        if cache.seen == before:
            raise UnsupportedModelError(
                f"{type(model).__name__} generated with another cache than the one it was given: "
                "it read no token into that one. Prompt learning (prefix tuning) brings a "
                "cache of its own, for example. Generate without it, or without a policy."
            )
        _check_all_is_read(model, cache, ids, result, first=0 if whole else before)
        return result

    return generate


def _check_all_is_read(
    model: Any, cache: Any, ids: Tensor | None, result: Any, *, first: int
) -> None:
    """Refuse a text of which tokens before the last were read into another cache.

    `result` begins with the token at place `first`. Beams may have read more than they return.
    """
    text = getattr(result, "sequences", result)
    if ids is None or not isinstance(text, Tensor) or text.dim() != 2:
        return
    length = first + int(text.shape[1])
    if cache.seen < length - 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} generated with another cache than the one it was given: it "
            f"read {cache.seen} tokens into that one, and returns {length}. Its forward or its "
            "prepare_inputs_for_generation drops the cache on the way."
        )


def _refuse_two_caches(is_ours: Callable[[object], bool], kwargs: dict[str, Any]) -> None:
    given = [kwargs[name] for name in NAMES if kwargs.get(name) is not None]
    if len(given) > 1 and given[0] is not given[1] and any(map(is_ours, given)):
        raise InvalidValueError(
            f"generate was given two caches, as {' and as '.join(NAMES)}: it would use one of them "
            "only. Give one."
        )


def _ids_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the token ids that `generate` was given; None for embeddings and other inputs."""
    if kwargs.get("inputs_embeds") is not None:
        return None
    given = args[0] if args else kwargs.get("inputs")
    given = kwargs.get("input_ids") if given is None else given
    is_ids = isinstance(given, Tensor) and given.dim() == 2 and not given.is_floating_point()
    return given if is_ids else None


def _length_of(args: tuple[Any, ...], kwargs: dict[str, Any], ids: Tensor | None) -> int:
    """Return how many tokens, or embeddings, each row of the input of `generate` has."""
    given = _given(kwargs, ids)
    return 2 if given is None else int(given.shape[1])


def _given(kwargs: dict[str, Any], ids: Tensor | None) -> Tensor | None:
    """Return the embeddings that `generate` was given, or else the token ids."""
    embeds: Tensor | None = kwargs.get("inputs_embeds")
    return ids if embeds is None else embeds


def _most_new_tokens(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], ids: Tensor | None
) -> int:
    """Return how many tokens `generate` may add to a row at most."""
    new = setting(model, args, kwargs, "max_new_tokens")
    if new is not None:
        return int(new)
    length = setting(model, args, kwargs, "max_length")
    if length is None:
        return DEFAULT_NEW_TOKENS
    return int(length) - (0 if ids is None else int(ids.shape[1]))


def _note(cache: Any, result: Any, *, first: int) -> None:
    """Let a cache learn the ids of the tokens that it has read."""
    ids = getattr(result, "sequences", result)
    known = isinstance(ids, Tensor) and ids.dim() == 2 and ids.shape[0] == cache.batch_size
    cache.read_tokens.note(ids if known else None, cache.seen, first=first)
