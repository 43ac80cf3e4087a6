"""The argument by which models and `generate` take a cache: what it is called.

transformers calls it `cache` since 5.24, and `past_key_values` before. The code of a checkpoint may
have either name, whatever transformers is installed: its signature says which.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from torch import nn

NAMES = ("cache", "past_key_values")
"""What the argument is called; the newest name is the first."""


def takes_a_cache(function: Callable[..., Any]) -> bool:
    """Whether a function has an argument for a cache, under either name."""
    return _name_in(function) is not None


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """Return the cache among arguments by name; None if there is none.

    >>> cache_in({"past_key_values": "a cache"}), cache_in({"cache": None}), cache_in({})
    ('a cache', None, None)
    """
    return next((arguments[name] for name in NAMES if arguments.get(name) is not None), None)


def cache_of(output: object) -> Any:
    """Return the cache in what a model or `generate` returned; None if there is none."""
    # New outputs give the cache under the old name, too, and log that they do.
    return next((getattr(output, name) for name in NAMES if hasattr(output, name)), None)


def name_for(to: Any) -> str:
    """Return what a model, or a method such as `generate`, calls the argument for its cache.

    Where the signature takes any name, as that of `generate` does, it is transformers' own name.
    """
    function = _forward_of(to) if isinstance(to, nn.Module) else to
    return _name_in(function) or _name_in_transformers()


def handed(cache: object, to: Any) -> dict[str, Any]:
    """Return the argument that gives a cache to a model, or to a method such as `generate`.

    >>> def forward(input_ids, past_key_values=None): ...
    >>> handed("a cache", to=forward)
    {'past_key_values': 'a cache'}
    """
    return {name_for(to): cache}


def renamed(arguments: dict[str, Any], name: str) -> dict[str, Any]:
    """Return arguments by name in which the cache has the name `name`.

    >>> renamed({"input_ids": "ids", "past_key_values": "a cache"}, "cache")
    {'input_ids': 'ids', 'cache': 'a cache'}
    """
    cache = cache_in(arguments)
    if cache is None:
        return arguments
    return {key: value for key, value in arguments.items() if key not in NAMES} | {name: cache}


def _forward_of(model: Any) -> Callable[..., Any]:
    """Return the forward whose signature has the names: wrappers take any argument."""
    # This and the import below are here, not above: `compose` and most commands come by without
    # transformers, which takes seconds to import.
    from kvpolicy.huggingface.model.adapters import model_inside

    inside = getattr(model_inside(model), "_orig_mod", model_inside(model))  # of torch.compile
    forward: Callable[..., Any] = inside.forward
    return forward


def _name_in_transformers() -> str:
    from transformers.masking_utils import create_causal_mask

    return _name_in(create_causal_mask) or NAMES[0]


def _name_in(function: Callable[..., Any]) -> str | None:
    plain = inspect.unwrap(function)
    # A bound method would keep its model in memory.
    return _name_in_signature(getattr(plain, "__func__", plain))


@lru_cache(maxsize=256)
def _name_in_signature(function: Callable[..., Any]) -> str | None:
    parameters = inspect.signature(function).parameters
    return next((name for name in NAMES if name in parameters), None)
