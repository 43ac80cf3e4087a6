"""Whether the keys and values of new tokens fit a layer: asked before anything is written."""

from __future__ import annotations

import torch
from torch import Tensor

from kvpolicy.cache.storage.layer_memory import LayerMemory
from kvpolicy.errors import InvalidValueError
from kvpolicy.pipeline.title import Title


def check_new(
    memory: LayerMemory, index: int, keys: Tensor, values: Tensor, storage: Title | None
) -> None:
    """Raise InvalidValueError unless a layer can take these keys and values of new tokens.

    Both must be [B, N, Q, *], with the batch and the heads that attention layer `index` holds.
    `storage` names the storage of the cache, which has no gradients.
    """
    if keys.dim() != 4 or values.dim() != 4 or keys.shape[:3] != values.shape[:3]:
        raise InvalidValueError(
            f"the keys of attention layer {index} are {tuple(keys.shape)} and its values "
            f"{tuple(values.shape)}. Both must be (batch, heads, tokens, channels), with the same "
            "batch, heads and tokens."
        )
    if storage is not None and keys.requires_grad and torch.is_grad_enabled():
        raise InvalidValueError(
            f"{storage} has no gradients, but the new keys need them. Read under torch.no_grad(), "
            "or use storage=None."
        )
    if memory.layout is not None:
        _check_shape(memory, index, keys, values)


def _check_shape(memory: LayerMemory, index: int, keys: Tensor, values: Tensor) -> None:
    layout = memory.layout
    if layout is None:
        return
    slots, rows = layout.slots, keys.shape[0]
    if rows != slots.batch:
        raise InvalidValueError(
            f"this conversation has {slots.batch} rows, but {rows} rows were given. Use "
            "cache.batch_repeat_interleave(n) or cache.batch_select_indices(rows), or make a new "
            "cache."
        )
    if keys.shape[1] != slots.heads:
        raise InvalidValueError(
            f"attention layer {index} has {slots.heads} key/value heads in this cache, but "
            f"{keys.shape[1]} heads were given. Make a cache for this model."
        )
    if memory.storage is not None:
        return  # its layout says nothing of channels and dtypes
    for name, new, held in (
        ("keys", keys, layout.keys.buffer),
        ("values", values, layout.values.buffer),
    ):
        if (new.shape[-1], new.dtype) != (held.shape[-1], held.dtype):
            raise InvalidValueError(
                f"attention layer {index} holds {name} of {held.shape[-1]} channels in "
                f"{held.dtype}, but {new.shape[-1]} channels in {new.dtype} were given. Use one "
                "model and one dtype for all of a conversation."
            )
