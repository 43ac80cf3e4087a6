"""Which models can be served exactly, and why the others are refused before any work is done."""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, cache_utils
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.huggingface.cache_argument import name_for, takes_a_cache
from kvpolicy.huggingface.model.architectures import ATTENTION, REFUSED, STATES
from kvpolicy.huggingface.model.config import decoder_config

# Older transformers have no layers with attention and a linear state in one.
_HYBRID = getattr(cache_utils, "LinearAttentionAndFullAttentionLayer", DynamicLayer)
EVICTING = (DynamicLayer, _HYBRID)
"""Types of layers whose attention a policy can evict from."""
_WINDOWED = getattr(
    cache_utils, "LinearAttentionAndSlidingWindowAttentionLayer", LinearAttentionLayer
)
_LEFT_ALONE = (DynamicSlidingWindowLayer, LinearAttentionLayer, _WINDOWED)


def supported_config(model: Any) -> PreTrainedConfig:
    """Return the config of a model's decoder, or say why the model is refused."""
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"policy.cache needs a transformers PreTrainedModel, not a {type(model).__name__}."
        )
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name} is an encoder-decoder; only decoders are served.")
    # The test that transformers itself makes before it lets the attention be set.
    if not (takes_a_cache(type(model).forward) and model._can_set_attn_implementation()):
        _refuse_what_is_around_a_language_model(model)
    if not takes_a_cache(type(model).forward):
        raise UnsupportedModelError(f"{name} takes no cache: it has a state of its own.")
    if not model._can_set_attn_implementation():
        raise UnsupportedModelError(
            f"{name} does not call its attention through transformers' attention interface, so its "
            "queries cannot be observed."
        )
    config = decoder_config(model)
    _refuse_more_than_causal_attention(model, config)
    if (reason := REFUSED.get(config.model_type)) is not None:
        raise UnsupportedModelError(f"{name} {reason}.")
    if (config._attn_implementation or "").startswith("paged|"):
        raise UnsupportedModelError(
            f"{name} uses paged attention ({config._attn_implementation}), which keeps its own "
            "cache. Set attn_implementation to sdpa, eager, flash_attention_2 or flex_attention."
        )
    return config


def _refuse_what_is_around_a_language_model(model: PreTrainedModel) -> None:
    """Name the model inside that takes a cache, if there is one."""
    for path, inner in model.named_modules():
        if (
            path
            and isinstance(inner, PreTrainedModel)
            and takes_a_cache(type(inner).forward)
            and inner._can_set_attn_implementation()
        ):
            raise UnsupportedModelError(
                f"{type(model).__name__} is a class around the language model "
                f"{type(inner).__name__}, which takes the cache. Use policy.cache(model.{path}), "
                f"and give that cache to model.generate({name_for(model.generate)}=...)."
            )


def _refuse_more_than_causal_attention(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    """Refuse decoders that attend to another input, or to tokens that are read later."""
    name = type(model).__name__
    if getattr(config, "cross_attention_layers", None) or getattr(
        config, "add_cross_attention", False
    ):
        raise UnsupportedModelError(
            f"{name} has cross-attention layers, which keep keys and values of another input "
            "(an image, an encoder's states) in the same cache; policies are not shown those. Use "
            "a model that reads images as tokens, or one without an encoder."
        )
    for module in model.modules():
        layer = getattr(module, "layer_idx", None)
        if (
            isinstance(layer, int)
            and ATTENTION in type(module).__name__
            and getattr(module, "config", None) is config
            and getattr(module, "is_causal", True) is False
        ):
            raise UnsupportedModelError(
                f"the attention of {name} is not causal ({type(module).__name__}, layer {layer}): "
                "tokens that are read later change what earlier tokens give, also those that were "
                "evicted. An encoder needs is_decoder=True to generate."
            )


def plain_layers(model: PreTrainedModel, config: PreTrainedConfig) -> list[Any]:
    """Return transformers' own cache layers for this model; those of `EVICTING` types can evict.

    Raises UnsupportedModelError if there is none, or if there is one that can neither be evicted
    nor left alone.
    """
    layers = list(DynamicCache(config=config).layers)
    for index, layer in enumerate(layers):
        # Older transformers have no layers without attention.
        nothing = type(layer).__name__ == "DummyLayer"
        if type(layer) not in (*EVICTING, *_LEFT_ALONE) and not nothing:
            if (reason := STATES.get(type(layer).__name__)) is not None:
                raise UnsupportedModelError(f"in layer {index} of {type(model).__name__} {reason}.")
            raise UnsupportedModelError(
                f"layer {index} of {type(model).__name__} keeps its state in a "
                f"{type(layer).__name__}, which policies cannot evict from yet. Served are full "
                "attention layers; sliding-window and linear layers are left as they are."
            )
    if not any(type(layer) in EVICTING for layer in layers):
        raise UnsupportedModelError(
            f"no layer of {type(model).__name__} has full attention: its cache does not grow with "
            "the prompt, so there is nothing to evict."
        )
    return layers
