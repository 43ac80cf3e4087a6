"""Load a cache: read a file, check it, and fill a new cache of the same model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvpolicy.errors import CacheFileError, KvpolicyError, shown
from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.huggingface.file.consistency import (
    check_layers,
    check_policy_layer,
    restore_spans,
)
from kvpolicy.huggingface.file.container import one_line, read
from kvpolicy.huggingface.file.fingerprint import differences
from kvpolicy.huggingface.file.layers import restore_layer
from kvpolicy.huggingface.file.paths import source
from kvpolicy.huggingface.file.saving import SPREAD, releases
from kvpolicy.huggingface.model.adapters import plain_model
from kvpolicy.huggingface.model.config import decoder_config
from kvpolicy.huggingface.model.devices import layer_devices
from kvpolicy.huggingface.model.ranks import ranks_of
from kvpolicy.huggingface.model.support import supported_config

NewCache = Callable[[Mapping[str, Any], Mapping[str, Any]], PolicyCache]
"""Makes an empty cache from the description of a policy, and of other arguments of `cache`."""

_FIELDS = {"format", "policy", "parts", "storage", "spans", "model", "kinds", "layers"}
_OF_FOREIGN_DATA = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What data raise that no version wrote."""


def load(path: str | os.PathLike[str], model: nn.Module, new_cache: NewCache) -> PolicyCache:
    """Return a cache that holds what `save` wrote; all parameters of the model are read for it.

    Raises CacheFileError if the path is no plain file, if the file is no such file, damaged or
    contradictory, of another model, or of another release of the plugins that its policy is made
    of; UnsupportedModelError for a model that no cache can be made for. A file that is refused
    leaves the model as it was found.
    """
    inner: PreTrainedModel = plain_model(model)
    supported_config(inner)
    text, tensors = read(source(path))
    try:
        return _loaded(text, tensors, inner, new_cache, path)
    except KvpolicyError:
        raise
    except _OF_FOREIGN_DATA as error:
        raise CacheFileError(
            f"cannot read {path}: it contains data that this version does not write "
            f"({one_line(error)})."
        ) from error


def _loaded(
    text: dict[str, Any],
    tensors: dict[str, Tensor],
    model: PreTrainedModel,
    new_cache: NewCache,
    path: Any,
) -> PolicyCache:
    if not isinstance(text, dict) or set(text) != _FIELDS:
        raise ValueError(f"a file has {', '.join(sorted(_FIELDS))}")
    if ranks_of(model, decoder_config(model)) is not None:
        raise CacheFileError(SPREAD)
    _check_model(text["model"], model, path)
    try:
        cache = new_cache(text["policy"], {"storage": text["storage"], **_spans(text["spans"])})
    except KvpolicyError as error:
        raise CacheFileError(f"the cache of {path} cannot be made here: {error}") from error
    try:
        _check_parts(text["parts"], releases(cache.session.policy.titles), path)
        _fill(cache, text, tensors, model, path)
    except BaseException:
        cache.close()
        raise
    return cache


def _spans(saved: Any) -> dict[str, Any]:
    if saved is None:
        return {}
    if not isinstance(saved, dict) or set(saved) != {"spans", "protect", "divider"}:
        raise ValueError("spans have other fields than this version writes")
    return saved


def _fill(
    cache: PolicyCache,
    text: dict[str, Any],
    tensors: dict[str, Tensor],
    model: PreTrainedModel,
    path: Any,
) -> None:
    if text["kinds"] != [type(layer).__name__ for layer in cache.layers]:
        raise CacheFileError(f"{path} holds layers of other kinds than this model's cache has.")
    host = [torch.device("cpu")] * len(cache.layers)
    devices = layer_devices(model, len(cache.layers))
    _restore(cache, text["layers"], tensors, host)
    heads = cache.session.config.num_attention_heads
    for layer, readers in zip(cache.policy_layers, cache.session.readers, strict=True):
        check_policy_layer(layer, heads * len(readers))
    check_layers(cache.layers)
    restore_spans(cache.session.spans, cache.policy_layers)
    if devices != host:
        # What is checked on the host makes no device wait.
        _restore(cache, text["layers"], tensors, devices)


def _restore(
    cache: PolicyCache, saved: Any, tensors: Mapping[str, Tensor], devices: list[torch.device]
) -> None:
    left = dict(tensors)
    for layer, data, device in zip(cache.layers, saved, devices, strict=True):
        restore_layer(layer, data, left, device)
    if left:
        raise ValueError(f"{len(left)} tensors belong to no layer")


def _check_model(saved: dict[str, Any], model: PreTrainedModel, path: Any) -> None:
    differing = differences(saved, model)
    if differing:
        kind = saved.get("class")
        kind = kind if isinstance(kind, str) and kind.isidentifier() else shown(kind)
        raise CacheFileError(
            f"{path} belongs to another model: a {kind} whose "
            f"{' and '.join(differing)} differ from this {type(model).__name__}. Load it with the "
            "model that it was saved with: the same weights and dtype, and the same active "
            "adapters, merged or not."
        )


def _check_parts(saved: dict[str, str], found: dict[str, str], path: Any) -> None:
    for kind, release in found.items():
        if saved.get(kind) != release:
            raise CacheFileError(
                f"{path} was evicted by {kind} {saved.get(kind)}; installed is {release}. Install "
                "that release, or read the prompt anew."
            )
