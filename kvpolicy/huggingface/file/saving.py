"""Save a cache: what its layers hold, and which policy and model they belong to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from kvpolicy.errors import CacheFileError, CacheStateError
from kvpolicy.huggingface.file.container import write
from kvpolicy.huggingface.file.fingerprint import fingerprint
from kvpolicy.huggingface.file.layers import kind_of, packed_layer
from kvpolicy.huggingface.file.paths import target
from kvpolicy.huggingface.layer import PolicyLayer
from kvpolicy.huggingface.session import Session
from kvpolicy.pipeline.describe import described
from kvpolicy.pipeline.title import Titles

SPREAD = (
    "the model is spread over processes by tensor parallelism, and each process holds its own "
    "heads of the cache. Files are for models in one process. Read the prompt anew."
)


def save(
    layers: Sequence[Any],
    session: Session,
    model: PreTrainedModel | None,
    path: str | os.PathLike[str],
) -> None:
    """Write the layers of a cache to a plain file, between two forwards.

    A symbolic link is followed. A file that is there is replaced whole, and keeps its permissions;
    if anything fails it stays as it was, and nothing is left beside it. All parameters of the model
    are read for it: see `fingerprint`.

    Raises CacheStateError for a cache that failed, CacheFileError for a cache that no file can
    hold and for a path that is no plain file or cannot be written, InvalidComponentError for a
    policy with parts that no installed plugin offers.
    """
    session.guard.check()
    if model is None:
        raise CacheStateError(
            "the model of this cache no longer exists, and a file is saved for one model. Keep the "
            "model until the cache is saved."
        )
    if session.ranks is not None:
        raise CacheFileError(SPREAD)
    if any(isinstance(layer, PolicyLayer) and layer.is_unobserved for layer in layers):
        raise CacheStateError(
            "an earlier forward stopped on its way, so the cache cannot be saved. Call "
            "cache.reset() and start over."
        )
    place = target(path)
    storage, title = session.storage, session.storage_title
    tensors: dict[str, Tensor] = {}
    text = {
        "policy": session.policy.to_dict(),
        "parts": releases(session.policy.titles),
        "storage": None if storage is None or title is None else described(title, storage),
        "spans": None if session.spans is None else session.spans.to_dict(),
        "model": fingerprint(model),
        "kinds": [kind_of(layer) for layer in layers],
        "layers": [packed_layer(layer, tensors, f"layers.{at}") for at, layer in enumerate(layers)],
    }
    write(text, tensors, place)


def releases(titles: Titles) -> dict[str, str]:
    """Return the name and the release of every part of a policy, by kind."""
    return {kind: f"{title.name}, {title.release}" for kind, title in titles.items()}
