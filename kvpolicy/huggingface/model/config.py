"""The configuration of a model's decoder."""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedModel


def decoder_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Return the config that the model's attention layers read."""
    return model.config.get_text_config(decoder=True)
