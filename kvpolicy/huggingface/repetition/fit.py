"""Which models can repeat a prompt, and why the others are refused before any work is done."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.huggingface.model.config import decoder_attentions
from kvpolicy.huggingface.model.rotary import has_varying_rotary
from kvpolicy.huggingface.repetition.residual import layers_around
from kvpolicy.observation.repetition import Repetition
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.pipeline.repetition import repetition_of


class Repeating(NamedTuple):
    """The module that reads ids, and that is called again, and the layers that are observed."""

    decoder: nn.Module
    layers: list[nn.Module]


def repeating_modules(
    policy: Pipeline,
    model: PreTrainedModel,
    config: PreTrainedConfig,
    layers: Sequence[Any],
    *,
    readers: object,
    ranks: object,
    expanding: object,
    is_static: bool,
) -> Repeating | None:
    """Return which modules of a model a second pass needs; None if nothing is repeated.

    `layers` are transformers' own layers of a cache. Raises UnsupportedModelError for a model that
    cannot repeat a prompt without a trace, and InvalidValueError for ids that it does not know.
    """
    repetition = repetition_of(policy)
    if repetition is None:
        return None
    name, title = type(model).__name__, policy.titles["scorer"]
    others = [type(each).__name__ for each in layers if type(each) is not DynamicLayer]
    reasons = {
        f"it keeps a {others[0]}, whose state has no way back" if others else "": bool(others),
        "layers of it share keys and values": bool(readers),
        "several processes share it by tensor parallelism": ranks is not None,
        "it caches latents": bool(expanding),
        "its rotary embedding depends on the length of what was read": has_varying_rotary(config),
        "flex_attention has masks that cannot be cut": "flex"
        in (config._attn_implementation or ""),
        "static=True was asked for": is_static,
    }
    reason = next((each for each, holds in reasons.items() if holds), None)
    if reason is not None:
        raise UnsupportedModelError(
            f"{title} has the model repeat its prompts, which {name} is not served with: {reason}. "
            "Use another recipe, such as 'snapkv'."
        )
    _check_ids(repetition, config)
    decoder, attentions = _decoder_of(model), decoder_attentions(model)
    around = layers_around(decoder, attentions) if repetition.residual else {}
    return Repeating(decoder, list(around.values()))


def _check_ids(repetition: Repetition, config: PreTrainedConfig) -> None:
    words = (*repetition.first, *repetition.later, *repetition.answer)
    if words and max(words) >= config.vocab_size:
        raise InvalidValueError(
            f"prompts are repeated behind the token id {max(words)}, but the model knows ids below "
            f"{config.vocab_size}. Take the ids from the tokenizer of this model."
        )


def _decoder_of(model: PreTrainedModel) -> nn.Module:
    decoder: nn.Module = model.get_decoder()
    inside = set(map(id, decoder.modules()))
    takes = inspect.signature(inspect.unwrap(type(decoder).forward)).parameters
    wanted = {"input_ids", "position_ids", "use_cache"}
    if not (wanted <= set(takes) and all(id(each) in inside for each in decoder_attentions(model))):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no decoder that takes input_ids and position_ids, so its "
            "prompts cannot be repeated. Use another recipe, such as 'snapkv'."
        )
    return decoder
