"""Models that add a bias by distance to the logits of attention, and which policies follow it."""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedModel

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.huggingface.model.architectures import DISTANCE_BIAS
from kvpolicy.huggingface.model.ranks import Ranks
from kvpolicy.pipeline.capabilities import follows_bias
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.prefill.pattern import PrefillPattern

_ATTENTIONS = ("eager", "sdpa")
"""Attention implementations that take the bias as a tensor with a column for each key."""
_SCORES_ONLY = ("selector",)
"""Kinds of parts that are shown scores, and no attention."""


def bias_extent(
    policy: Pipeline,
    model: PreTrainedModel,
    config: PreTrainedConfig,
    *,
    ranks: Ranks | None,
    prefill: PrefillPattern | None,
) -> int | None:
    """Return from which distance on the bias of a model is 0; None if it adds none by distance.

    Raises UnsupportedModelError for a policy or an attention that does not follow the bias.
    """
    setting = DISTANCE_BIAS.get(config.model_type)
    if setting is None:
        return None
    name = f"{type(model).__name__} adds a bias by distance to its attention"
    attention = config._attn_implementation or "eager"
    if attention not in _ATTENTIONS:
        raise UnsupportedModelError(
            f"{name}, which {attention} cannot take for keys of an evicted cache. Set "
            "attn_implementation to sdpa or eager."
        )
    if prefill is not None:
        raise UnsupportedModelError(f"{name}, which sparse prefill lacks. Use prefill=None.")
    if ranks is not None:
        raise UnsupportedModelError(
            f"{name}, which is not served where processes share a model. Use one process."
        )
    if policy.every is not None and policy.every > 1:
        raise UnsupportedModelError(
            f"{name}. With every={policy.every} a policy scores by queries of earlier tokens, "
            "whose bias is not kept. Use every=1 or every=None."
        )
    for kind, part in policy.parts.items():
        if kind not in _SCORES_ONLY and not follows_bias(part):
            raise UnsupportedModelError(
                f"{name}, and {policy.titles[kind]} does not say that it follows such a bias "
                "(`position_bias = True`). Use another, such as those of recipe 'snapkv'."
            )
    return int(getattr(config, setting))
