"""The configuration of a model's decoder, and the attention layers that read it."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from kvpolicy.huggingface.model.architectures import ATTENTION


def decoder_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Return the config that the model's attention layers read."""
    return model.config.get_text_config(decoder=True)


def decoder_attentions(model: PreTrainedModel) -> list[Any]:
    """Return the attention modules of the decoder that have a number, not those of an encoder.

    The layers of an image encoder are numbered, too; they have a configuration of another type.
    """
    own = decoder_config(model).model_type
    return [
        module
        for module in model.modules()
        if getattr(module, "layer_idx", None) is not None
        and ATTENTION in type(module).__name__
        and getattr(getattr(module, "config", None), "model_type", own) == own
    ]
