"""Layers that attend with the keys and values of an earlier layer: which read which."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.huggingface.cache_argument import cache_in, name_for, renamed


def readers_of(name: str, config: PreTrainedConfig) -> dict[int, list[int]]:
    """Return, for each layer whose keys others read, all layers that attend with them.

    The layer itself is the first. `name` is what the model is called in messages. Raises
    UnsupportedModelError if the configuration does not say who reads what.
    """
    modes = getattr(config, "kv_sharing_modes", None)
    if modes is None:
        if getattr(config, "num_kv_shared_layers", 0):
            raise UnsupportedModelError(
                f"layers of {name} share keys and values with others, and this release of "
                "transformers does not say which. Use a newer one."
            )
        return {}
    kinds = getattr(config, "layer_types", None)
    owners: dict[Any, int] = {}
    found: dict[int, list[int]] = {}
    for layer, mode in enumerate(modes):
        kind = None if kinds is None else kinds[layer]
        if mode == "store":
            owners[kind] = layer
            found[layer] = [layer]
        elif mode == "reuse" and kind in owners:
            found[owners[kind]].append(layer)
        elif mode is not None:
            raise UnsupportedModelError(
                f"layer {layer} of {name} takes keys and values of another layer in a way that "
                f"is not understood ({mode!r})."
            )
    return {layer: readers for layer, readers in found.items() if len(readers) > 1}


def all_readers(readers: Mapping[int, list[int]], layers: Sequence[int]) -> list[int]:
    """Return `layers`, and the layers that attend with their keys.

    >>> all_readers({3: [3, 7]}, [1, 3])
    [1, 3, 7]
    """
    return [each for layer in layers for each in readers.get(layer, [layer])]


def refuse_shards(name: str, readers: Mapping[int, list[int]], ranks: object) -> None:
    """Raise UnsupportedModelError if several processes share the heads of such layers."""
    if readers and ranks is not None:
        raise UnsupportedModelError(
            f"layers of {name} share keys and values, and several processes share the heads of "
            "each. Policies are not shown both at once. Use one process."
        )


def keeping_queries(
    is_ours: Callable[[object], bool], own: Callable[..., Any]
) -> Callable[..., Any]:
    """Return a method that drops queries before layers that share keys, but not those we need.

    Such a layer adds nothing to the cache, so models compute it only for the tokens whose logits
    are asked for. A policy scores by the queries of more tokens.
    """
    signature, name = inspect.signature(own), name_for(own)

    @functools.wraps(own)
    def sliced(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **renamed(kwargs, name))
        given = bound.arguments
        cache = cache_in(given)
        logits = given.get("logits_to_keep")
        if is_ours(cache) and type(logits) is int and logits > 0:
            given["logits_to_keep"] = cache.session.queries_to_keep(cache.get_seq_length(), logits)
        return own(*bound.args, **bound.kwargs)

    return sliced


def keeping_outputs(
    is_ours: Callable[[object], bool], own: Callable[..., Any]
) -> Callable[..., Any]:
    """Return the `forward` around such a method: it returns as many tokens as it was asked for.

    The classes around it take the outputs for those of the logits, if they are not of all tokens.
    """
    signature, name = inspect.signature(own), name_for(own)

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        result = own(*args, **kwargs)
        given = signature.bind(*args, **renamed(kwargs, name)).arguments
        given = given | given.get("kwargs", {})
        asked = given.get("logits_to_keep", 0)
        hidden = getattr(result, "last_hidden_state", None)
        if hidden is None or type(asked) is not int or not is_ours(cache_in(given)):
            return result
        read = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
        if 0 < asked < hidden.shape[1] < read.shape[1]:
            result.last_hidden_state = hidden[:, -asked:]
        return result

    return forward
