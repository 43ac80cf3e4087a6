"""Checks before a forward or a crop: whether the layers of a cache may go on, or go back."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from kvpolicy.errors import CacheStateError, InvalidValueError, UnsupportedModelError, shown
from kvpolicy.huggingface.layer import PolicyLayer

NO_LENGTH = "What was evicted cannot be read again, so that a cache has no way back to a length."
NO_PICKLE = (
    "a PolicyCache belongs to its model, so pickle, torch.save and copy.copy cannot copy it. Use "
    "kvpolicy.save(cache, path) and kvpolicy.load(path, model), or cache.clone()."
)
"""Why a cache is not pickled, and what to do instead."""


def check_training(model: Any) -> None:
    """Raise UnsupportedModelError for gradient checkpointing in training: it drops the cache."""
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise UnsupportedModelError(
            "gradient checkpointing reads without a cache while the model is in training mode, so "
            "nothing would be evicted. Call model.eval(), or disable checkpointing."
        )


def check_observed(layers: Sequence[Any], index: int) -> None:
    """Raise UnsupportedModelError if a layer's keys never came to its attention."""
    if _is_unobserved(layers[index]) and not layers[index].forward.readings:
        raise UnsupportedModelError(
            f"attention layer {index} changed its keys after the cache gave them out (as latent "
            "attention does), or belongs to another model than this cache: it cannot be observed."
        )


def check_whole(layers: Sequence[Any], rows: int) -> None:
    """Raise CacheStateError if an earlier forward stopped before all layers were through.

    Raises InvalidValueError if the next one has another number of sequences.
    """
    counts = {layer.get_seq_length() for layer in layers if isinstance(layer, CacheLayerMixin)}
    if len(counts) > 1 or any(map(_is_unobserved, layers)):
        raise CacheStateError(
            f"an earlier forward stopped on its way: layers have seen {min(counts)} to "
            f"{max(counts)} tokens. Call cache.reset() and start over."
        )
    next(layer for layer in layers if isinstance(layer, PolicyLayer)).memory.check_batch(rows)


def check_crop(layers: Sequence[Any], tokens_to_remove: Any) -> None:
    """Raise CacheStateError, before any layer is cropped, if one of them cannot be.

    Raises InvalidValueError or UnsupportedModelError if it is not minus a number of tokens.
    """
    if type(tokens_to_remove) is not int:
        raise InvalidValueError(
            f"crop takes minus the number of tokens to forget, an int such as -5, not "
            f"{shown(tokens_to_remove)}. Nothing was changed."
        )
    if tokens_to_remove > 0:
        raise UnsupportedModelError(
            f"crop takes minus the number of tokens to forget, not the length {tokens_to_remove}. "
            f"{NO_LENGTH}"
        )
    count = -tokens_to_remove
    for index, layer in enumerate(layers):
        if isinstance(layer, PolicyLayer):
            layer.check_crop(count)
        elif _goes_back(layer):
            continue
        elif isinstance(layer, LinearAttentionLayer):
            raise CacheStateError(
                f"cannot crop: layer {index} is linear attention, whose state has no way back. "
                "Start over with cache.reset()."
            )
        elif isinstance(layer, DynamicSlidingWindowLayer) and (
            layer.get_seq_length() >= layer.sliding_window
        ):
            raise CacheStateError(
                f"cannot crop: layer {index} holds only its sliding window of "
                f"{layer.sliding_window} tokens. Start over with cache.reset()."
            )


def repeated_rows(repeats: Any, batch: int) -> Int[Tensor, " rows"]:
    """Return the rows of `batch` sequences that are repeated; raise InvalidValueError for no count.

    >>> repeated_rows(2, 3)
    tensor([0, 0, 1, 1, 2, 2])
    """
    if isinstance(repeats, bool) or not isinstance(repeats, Integral) or repeats < 1:
        raise InvalidValueError(
            f"sequences are repeated an int of times, at least 1, not {shown(repeats)}. "
            "Nothing was changed."
        )
    return torch.arange(batch, device="cpu").repeat_interleave(int(repeats))


def selected_rows(indices: Any, batch: int) -> Int[Tensor, " rows"]:
    """Return the rows that are selected: by their numbers, from the end too, or by a mask.

    >>> selected_rows(torch.tensor([2, -3]), 3), selected_rows(torch.tensor([True, False]), 2)
    (tensor([2, 0]), tensor([0]))

    Raises InvalidValueError for others than those of the `batch` sequences.
    """
    if isinstance(indices, Tensor) and indices.dtype == torch.bool and indices.shape == (batch,):
        return indices.cpu().nonzero()[:, 0]
    rows = checked_rows(indices, batch, least=-batch)
    return torch.arange(batch, device="cpu")[rows.cpu().long()]


def checked_rows(rows: Any, batch: int, *, least: int = 0) -> Int[Tensor, " rows"]:
    """Return numbers of rows as they are; raise InvalidValueError if `batch` rows lack one.

    Waits for the device. A cache without a prompt has no rows, and nothing to change.
    """
    kinds = (torch.int32, torch.int64)
    if not isinstance(rows, Tensor) or rows.dim() != 1 or rows.dtype not in kinds:
        raise InvalidValueError(
            "sequences of the batch are given by a tensor of their numbers, such as "
            f"torch.tensor([0, 2]), not {shown(rows)}. Nothing was changed."
        )
    numbers: list[int] = rows.tolist()
    if batch and not all(least <= number < batch for number in numbers):
        raise InvalidValueError(
            f"this conversation has {batch} rows, 0 to {batch - 1}, but rows {shown(numbers)} were "
            "asked for. Nothing was changed."
        )
    return rows if batch else rows[:0]


def _goes_back(layer: Any) -> bool:
    """Whether a layer of transformers keeps what it needs to take drafts back."""
    states = getattr(layer, "is_recurrent_states_initialized", {})
    return getattr(layer, "record_past", False) and not any(states.values())


def _is_unobserved(layer: Any) -> bool:
    forward = layer.forward if isinstance(layer, PolicyLayer) else None
    return forward is not None and forward.keys is not None
