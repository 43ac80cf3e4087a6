"""Load a cache: read a file, check it, and fill a new cache of the same model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from kvpolicy.errors import CacheFileError, KvpolicyError
from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.huggingface.file.container import read
from kvpolicy.huggingface.file.fingerprint import fingerprint
from kvpolicy.huggingface.file.layers import restore_layer
from kvpolicy.huggingface.file.paths import source
from kvpolicy.huggingface.file.saving import SPREAD, releases
from kvpolicy.huggingface.model.config import decoder_config
from kvpolicy.huggingface.model.devices import layer_devices
from kvpolicy.huggingface.model.ranks import ranks_of

NewCache = Callable[[Mapping[str, Any], Mapping[str, Any] | None], PolicyCache]
"""Makes an empty cache from the description of a policy and of a storage."""


def load(path: str | os.PathLike[str], model: PreTrainedModel, new_cache: NewCache) -> PolicyCache:
    """Return a cache that holds what `save` wrote.

    Raises CacheFileError if the file is no such file, damaged, of another model, or of another
    release of the plugins that its policy is made of.
    """
    text, tensors = read(source(path))
    try:
        return _loaded(text, tensors, model, new_cache, path)
    except KvpolicyError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CacheFileError(
            f"cannot read {path}: it contains data that this version does not write "
            f"({type(error).__name__}: {error})."
        ) from error


def _loaded(
    text: dict[str, Any],
    tensors: dict[str, Tensor],
    model: PreTrainedModel,
    new_cache: NewCache,
    path: Any,
) -> PolicyCache:
    if ranks_of(model, decoder_config(model)) is not None:
        raise CacheFileError(SPREAD)
    _check_model(text["model"], model, path)
    try:
        cache = new_cache(text["policy"], text["storage"])
    except KvpolicyError as error:
        raise CacheFileError(f"the cache of {path} cannot be made here: {error}") from error
    try:
        _check_parts(text["parts"], releases(cache.session.policy.titles), path)
        _fill(cache, text, tensors, model, path)
    except BaseException:
        cache.close()
        raise
    return cache


def _fill(
    cache: PolicyCache,
    text: dict[str, Any],
    tensors: dict[str, Tensor],
    model: PreTrainedModel,
    path: Any,
) -> None:
    if text["kinds"] != [type(layer).__name__ for layer in cache.layers]:
        raise CacheFileError(f"{path} holds layers of other kinds than this model's cache has.")
    devices = layer_devices(model, len(cache.layers))
    for layer, data, device in zip(cache.layers, text["layers"], devices, strict=True):
        restore_layer(layer, data, tensors, device)


def _check_model(saved: dict[str, str], model: PreTrainedModel, path: Any) -> None:
    found = fingerprint(model)
    differing = [name for name in found if saved.get(name) != found[name]]
    if differing:
        raise CacheFileError(
            f"{path} belongs to another model: a {saved.get('class')} whose "
            f"{' and '.join(differing)} differ from this {found['class']}. Load it with the model "
            "(weights and dtype) that it was saved with."
        )


def _check_parts(saved: dict[str, str], found: dict[str, str], path: Any) -> None:
    for kind, release in found.items():
        if saved.get(kind) != release:
            raise CacheFileError(
                f"{path} was evicted by {kind} {saved.get(kind)}; installed is {release}. Install "
                "that release, or read the prompt anew."
            )
