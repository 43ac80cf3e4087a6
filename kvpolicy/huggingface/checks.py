"""Checks before a forward or a crop: whether the layers of a cache may go on, or go back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def check_whole(layers: Sequence[Any]) -> None:
    """Raise CacheStateError if an earlier forward stopped before all layers were through."""
    counts = {layer.get_seq_length() for layer in layers if isinstance(layer, CacheLayerMixin)}
    if len(counts) > 1 or any(map(_is_unobserved, layers)):
        raise CacheStateError(
            f"an earlier forward stopped on its way: layers have seen {min(counts)} to "
            f"{max(counts)} tokens. Call cache.reset() and start over."
        )


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


def _goes_back(layer: Any) -> bool:
    """Whether a layer of transformers keeps what it needs to take drafts back."""
    states = getattr(layer, "is_recurrent_states_initialized", {})
    return getattr(layer, "record_past", False) and not any(states.values())


def _is_unobserved(layer: Any) -> bool:
    forward = layer.forward if isinstance(layer, PolicyLayer) else None
    return forward is not None and forward.keys is not None
