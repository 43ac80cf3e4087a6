"""Observe: wrap the attention function that a model already uses, and show its calls to caches."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.huggingface.attention.grouped import can_fold, folded_attention

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from kvpolicy.huggingface.layer import PolicyLayer

PREFIX = "kvpolicy_"
"""What is put before the name of the wrapped implementation: 'kvpolicy_sdpa' wraps 'sdpa'."""

_HANDED_OUT_BY = "_kvpolicy_layer"
_forward = threading.local()
F = TypeVar("F", bound=Callable[..., Any])


def between_graphs(function: F) -> F:
    """Let a function of a compiled model run as it is, between what was compiled."""
    disabled: F = torch.compiler.disable(function)
    return disabled


def decoder_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Return the config that the model's attention layers read."""
    return model.config.get_text_config(decoder=True)


def attach(config: PreTrainedConfig) -> None:
    """Let the attention of every model with this config be observed; nothing else changes."""
    if is_attached(config):
        return
    name = config._attn_implementation or "eager"
    AttentionInterface.register(PREFIX + name, _observed(name))
    if name in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(PREFIX + name, _noted(ALL_MASK_ATTENTION_FUNCTIONS[name]))
    _set(config, PREFIX + name)


def is_attached(config: PreTrainedConfig) -> bool:
    """Whether attention is being observed."""
    return (config._attn_implementation or "").startswith(PREFIX)


def detach(config: PreTrainedConfig) -> None:
    """Give the attention back as it was found."""
    if is_attached(config):
        _set(config, config._attn_implementation.removeprefix(PREFIX))


def _set(config: PreTrainedConfig, name: str) -> None:
    # The mapping form leaves sub-configs (a vision tower's, say) as they are.
    config._attn_implementation = {"": name}


def _noted(build: Callable[..., Any]) -> Callable[..., Any]:
    """Note the 2D mask that a forward was given; what is built of it shows fewer columns."""

    @between_graphs
    def mask(*args: Any, **kwargs: Any) -> Any:
        _forward.mask = kwargs.get("attention_mask")
        return build(*args, **kwargs)

    return mask


def take_given_mask() -> tuple[bool, Tensor | None]:
    """Return whether this thread's forward built a mask, and the 2D mask that it was given."""
    given = hasattr(_forward, "mask")
    mask = getattr(_forward, "mask", None)
    if given:
        del _forward.mask
    return given, mask


def hand_out(keys: Tensor, layer: PolicyLayer) -> Tensor:
    """Mark keys so that the attention call that receives them finds their layer."""
    # A weak reference: the tensor outlives the call in autograd graphs and debuggers.
    setattr(keys, _HANDED_OUT_BY, weakref.ref(layer))
    return keys


def _layer_of(keys: Tensor) -> PolicyLayer | None:
    reference = getattr(keys, _HANDED_OUT_BY, None)
    return None if reference is None else reference()


def _observed(name: str) -> Callable[..., Any]:
    @between_graphs
    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        wrapped = attention_of(module, name)
        layer = _layer_of(key)
        if layer is None:
            return wrapped(module, query, key, value, attention_mask, *args, **kwargs)
        with layer.state.recording_failure():
            _refuse_what_is_not_shown(module, kwargs)
            mask = layer.mask_for(attention_mask, query, name)
            logits: dict[str, Any] = {
                "scaling": kwargs.get("scaling"),
                "softcap": kwargs.get("softcap"),
                "sink_logits": _sink_logits(module, query, kwargs),
            }
            if layer.is_uneven:
                _refuse_what_is_not_computed(module, kwargs)
                result = layer.attend(query, **logits), None
            elif (sparse := layer.attend_sparsely(query, mask, **logits)) is not None:
                _refuse_what_is_not_computed(module, kwargs)
                result = sparse, None
            elif layer.has_evicted and can_fold(wrapped, query, key, mask, kwargs):
                result = folded_attention(query, key, value, kwargs.get("scaling")), None
            else:
                result = wrapped(module, query, key, value, mask, *args, **kwargs)
            layer.observe(module, query, **logits)
        return result

    return attention


def attention_of(module: Any, name: str) -> Callable[..., Any]:
    """Return the implementation `name` as the model itself looks it up.

    Raises UnsupportedModelError for a model that does not call transformers' attention interface.
    """
    interface, eager = _interface(type(module).forward, name)
    found: Callable[..., Any] = interface.get_interface(name, eager)
    return found


@cache
def _interface(forward: Callable[..., Any], name: str) -> tuple[AttentionInterface, Any]:
    """Return where the model itself looks its attention up: its file may override entries."""
    scope = getattr(inspect.unwrap(forward), "__globals__", {})
    interface = scope.get("ALL_ATTENTION_FUNCTIONS")
    eager = scope.get("eager_attention_forward")
    if interface is None or (name == "eager" and eager is None):
        raise UnsupportedModelError(
            f"{forward.__qualname__} does not call transformers' attention interface, so its "
            "queries cannot be observed."
        )
    return interface, eager


def _refuse_what_is_not_computed(module: Any, kwargs: dict[str, Any]) -> None:
    """Refuse dropout, and to give out weights, where attention is computed here."""
    where = "attention over heads of unequal length and sparse prefill do"
    name = type(module).__name__
    if kwargs.get("dropout"):
        raise UnsupportedModelError(
            f"{name} asks for dropout, which {where} not have. Call model.eval(), or use an "
            "allocator that treats heads alike and prefill=None."
        )
    config = getattr(module, "config", None)
    if kwargs.get("output_attentions") or getattr(config, "output_attentions", False):
        raise UnsupportedModelError(
            f"{name} is to give out its attention weights (output_attentions=True), which {where} "
            "not have. Use an allocator that treats heads alike and prefill=None."
        )


def _sink_logits(module: Any, query: Tensor, kwargs: dict[str, Any]) -> Tensor | None:
    """Return what some models add to the softmax of each query head: a learned logit."""
    for name in ("s_aux", "sinks"):
        sinks = kwargs.get(name)
        if sinks is None:
            continue
        if tuple(sinks.shape) != (query.shape[1],):
            raise UnsupportedModelError(
                f"{type(module).__name__} gives its attention {name!r} of {tuple(sinks.shape)}, "
                f"which is not a logit for each of {query.shape[1]} query heads."
            )
        found: Tensor = sinks.detach()
        return found
    return None


def _refuse_what_is_not_shown(module: Any, kwargs: dict[str, Any]) -> None:
    """Refuse attention that differs from a causal softmax of scaled, capped products."""
    name = type(module).__name__
    if kwargs.get("is_causal", getattr(module, "is_causal", True)) is False:
        raise UnsupportedModelError(
            f"{name} is not causal: tokens read later would change what was evicted. An encoder "
            "needs is_decoder=True to generate."
        )
    for extra in ("position_bias", "indices", "block_indices"):
        if kwargs.get(extra) is not None:
            raise UnsupportedModelError(
                f"{name} gives its attention {extra!r}, which policies are not shown yet: their "
                "scores would be wrong."
            )
