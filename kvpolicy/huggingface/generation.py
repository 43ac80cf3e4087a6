"""`generate` with a cache of ours: it must use the cache that it is given, or refuse."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.huggingface.model.adapters import check_no_virtual_tokens


def checked_inputs(
    is_ours: Callable[[object], bool], own: Callable[..., Any]
) -> Callable[..., Any]:
    """Return `prepare_inputs_for_generation` that keeps a cache of ours, or refuses."""

    @functools.wraps(own)
    def prepare(model: Any, *args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get("past_key_values")
        inputs = own(model, *args, **kwargs)
        if not is_ours(cache):
            return inputs
        if kwargs.get("use_cache") is False:
            raise UnsupportedModelError(
                "generate was called with use_cache=False and past_key_values=cache: it would feed "
                "the whole text into the cache again for every token. Leave use_cache out."
            )
        if inputs.get("past_key_values") is not cache:
            _keep(model, cache, inputs)
        return inputs

    return prepare


def _keep(model: Any, cache: Any, inputs: dict[str, Any]) -> None:
    """Give the cache back to inputs that dropped it, where the model reads all tokens anyway."""
    if cache.get_seq_length() > 0:
        raise UnsupportedModelError(
            f"{type(model).__name__} drops its cache here, to read the whole text again. Models "
            "with longrope do so where the text grows beyond original_max_position_embeddings. "
            "What was evicted cannot be read again. Start over with a prompt that is longer than "
            "that, or keep prompt and answer below it."
        )
    inputs["past_key_values"] = cache


def checked_generate(
    is_ours: Callable[[object], bool], own: Callable[..., Any]
) -> Callable[..., Any]:
    """Return `generate` that refuses to return a text which did not come out of our cache."""

    @functools.wraps(own)
    def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
        cache: Any = kwargs.get("past_key_values")
        before = -1
        if is_ours(cache):
            check_no_virtual_tokens(model)
            before = cache.get_seq_length()
        result = own(model, *args, **kwargs)
        if before >= 0 and cache.get_seq_length() == before:
            raise UnsupportedModelError(
                f"{type(model).__name__} generated with another cache than the one it was given: "
                "it read no token into past_key_values. Prompt learning (prefix tuning) brings a "
                "cache of its own, for example. Generate without it, or without a policy."
            )
        return result

    return generate
