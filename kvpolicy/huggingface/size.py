"""The bytes that a cache will take, computed from a model's config and a policy."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.storage.protocol import AnyStorage
from kvpolicy.errors import InvalidValueError
from kvpolicy.huggingface.cache_argument import handed
from kvpolicy.huggingface.hybrid import linear_nbytes
from kvpolicy.huggingface.model.config import decoder_config
from kvpolicy.huggingface.model.support import plain_layers, supported_config
from kvpolicy.observation.observation import Observation
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.stages.allocation import UniformAllocator

_PROBE = 4
"""Tokens that a model without weights reads, to show the shapes of its layers."""
_POSITION = 4
"""Bytes of a position that is held: an int32."""


@attrs.frozen(kw_only=True)
class LayerShape:
    """The keys and values of one layer: its heads, their channels, and bytes of a number.

    `window` is how many of the newest tokens a sliding layer holds; None: all, or what a policy
    keeps.
    """

    heads: int
    query_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    window: int | None

    @property
    def row_nbytes(self) -> int:
        """Bytes of the keys and values of one position in all heads."""
        return self.heads * (self.key_dim + self.value_dim) * self.dtype.itemsize

    @property
    def remainder_nbytes(self) -> int:
        """Bytes of what stands for evicted positions: a row in float32, and a count of 8 bytes."""
        size = torch.promote_types(self.dtype, torch.float32).itemsize
        return self.heads * ((self.key_dim + self.value_dim) * size + 8)


@attrs.frozen(kw_only=True)
class ModelShape:
    """What a config says of a model: its layers, and the bytes of its weights.

    `linear_nbytes` are the bytes of all linear states of one row, which do not grow.
    """

    name: str
    layers: tuple[LayerShape, ...]
    weight_nbytes: int
    linear_nbytes: int = 0


@attrs.frozen(kw_only=True)
class CacheSize:
    """Bytes of a cache after a prompt of `tokens`; `held` positions in each layer that evicts.

    `full` is transformers' own cache. `reading` is the most that is held while the prompt is read:
    a layer is whole until its own eviction. It is an upper bound for allocators other than
    'uniform'.
    """

    tokens: int
    held: int
    nbytes: int
    full: int
    reading: int


def model_shape(config: PreTrainedConfig, dtype: torch.dtype) -> ModelShape:
    """Return the shapes of a model's layers. No weights are made.

    Raises UnsupportedModelError for a model that no policy can serve.
    """
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if getattr(model.config, "_experts_implementation", None) == "grouped_mm":
        # Without data, PyTorch's grouped products take bfloat16 only.
        model.set_experts_implementation("batched_mm")
    supported_config(model)
    text = decoder_config(model)
    plain_layers(model, text)
    cache = DynamicCache(config=text)
    probe = torch.zeros((1, _PROBE), dtype=torch.long, device="meta")
    with torch.no_grad():
        model(probe, **handed(cache, to=model))
    layers = tuple(
        _layer_shape(layer, text) for layer in cache.layers if isinstance(layer, DynamicLayer)
    )
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    return ModelShape(
        name=type(model).__name__,
        layers=layers,
        weight_nbytes=weights,
        linear_nbytes=sum(linear_nbytes(layer) for layer in cache.layers),
    )


def _layer_shape(layer: Any, config: PreTrainedConfig) -> LayerShape:
    return LayerShape(
        heads=layer.keys.shape[1],
        query_heads=config.num_attention_heads,
        key_dim=layer.keys.shape[3],
        value_dim=layer.values.shape[3],
        dtype=layer.keys.dtype,
        # transformers holds one token less than the window.
        window=layer.sliding_window - 1 if isinstance(layer, DynamicSlidingWindowLayer) else None,
    )


def cache_size(
    shape: ModelShape,
    policy: Pipeline | None,
    tokens: int,
    *,
    batch: int = 1,
    storage: AnyStorage | None = None,
) -> CacheSize:
    """Return the bytes that a policy's cache takes after a prompt; None is the full cache.

    An allocator may stay below the budget, and a compactor may write smaller rows: then this is an
    upper bound.

    Raises InvalidValueError for less than one token.
    """
    if tokens < 1 or batch < 1:
        raise InvalidValueError(f"a prompt has at least 1 token, not {min(tokens, batch)}.")
    evicts = policy is not None and not policy.keeps_all(tokens)
    held = policy.kept_of(tokens) if policy is not None and evicts else tokens
    whole = [each.row_nbytes * min(tokens, each.window or tokens) for each in shape.layers]
    kept = [
        rows
        if policy is None or each.window is not None
        else _layer_nbytes(each, policy, held, storage, moved=evicts)
        for each, rows in zip(shape.layers, whole, strict=True)
    ]
    waits = policy is not None and policy.model_allocator is not None
    # Other allocators may give earlier layers more than later ones, up to all that is kept.
    evenly = policy is None or isinstance(policy.allocator, UniformAllocator)
    if policy is not None and policy.sequential_allocator is not None:
        evenly = len({each.row_nbytes for each in shape.layers}) == 1
    peaks = [
        (sum(kept[:at]) if evenly else sum(kept)) + full + _state_nbytes(each, policy, tokens)
        for at, (each, full) in enumerate(zip(shape.layers, whole, strict=True))
    ]
    reading = sum(whole) if waits or policy is None else max(*peaks, sum(kept))
    return CacheSize(
        tokens=tokens,
        held=held,
        nbytes=batch * (sum(kept) + shape.linear_nbytes),
        full=batch * (sum(whole) + shape.linear_nbytes),
        reading=batch * (reading + shape.linear_nbytes),
    )


def _layer_nbytes(
    layer: LayerShape, policy: Pipeline, held: int, storage: AnyStorage | None, *, moved: bool
) -> int:
    """Return the bytes of rows, positions and running state that one layer holds."""
    rows = layer.row_nbytes * held if storage is None else _stored_nbytes(layer, held, storage)
    positions = layer.heads * held * _POSITION if moved else 0
    remainder = layer.remainder_nbytes if moved and policy.remainder_rows else 0
    return rows + positions + remainder + _state_nbytes(layer, policy, held)


def _stored_nbytes(layer: LayerShape, held: int, storage: AnyStorage) -> int:
    """Return the bytes of rows in a storage. They grow by the same number with every row.

    So what it takes for many rows follows from what it takes for a few.
    """
    few = min(held, 512)
    sizes = [_stored(layer, count, storage) for count in (few - 1, few)] if few > 1 else [0, 0]
    if held == few:
        return _stored(layer, few, storage)
    return sizes[1] + (sizes[1] - sizes[0]) * (held - few)


def _stored(layer: LayerShape, count: int, storage: AnyStorage) -> int:
    keys, values = (
        torch.zeros((1, layer.heads, count, dim), dtype=layer.dtype, device="cpu")
        for dim in (layer.key_dim, layer.value_dim)
    )
    stored: int = storage.store(Contents.of(keys, values), None).nbytes
    return stored


def _state_nbytes(layer: LayerShape, policy: Pipeline | None, held: int) -> int:
    """Return the bytes of a scorer's running state, from what it makes of two tokens."""
    if policy is None or policy.running_scorer is None:
        return 0
    keys, values = (
        torch.zeros((1, layer.heads, 2, dim), dtype=torch.float32, device="cpu")
        for dim in (layer.key_dim, layer.value_dim)
    )
    shape = (1, layer.query_heads, 2, layer.key_dim)
    queries = torch.zeros(shape, dtype=torch.float32, device="cpu")
    state = policy.accumulate(Observation(queries=queries, keys=keys, values=values))
    return 0 if state is None else state.nbytes // 2 * held
