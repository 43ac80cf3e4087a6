"""Which policies and models go with a static cache, and why the others are refused."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.static.evicting import StaticEvicting
from kvpolicy.cache.static.memory import StaticStorage
from kvpolicy.cache.static.operators import (
    register_attend_ragged,
    register_evict_one,
    register_turn_sinks,
)
from kvpolicy.cache.static.ring import StaticRing
from kvpolicy.cache.static.rows import StaticRows
from kvpolicy.cache.static.uneven import StaticRagged
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.huggingface.model.adapters import plain_model
from kvpolicy.huggingface.model.config import decoder_config
from kvpolicy.huggingface.model.latents import expanding_modules
from kvpolicy.huggingface.model.ranks import ranks_of
from kvpolicy.huggingface.model.rotary import rotaries
from kvpolicy.huggingface.model.shared_layers import readers_of
from kvpolicy.huggingface.model.support import plain_layers, supported_config
from kvpolicy.pipeline.capabilities import biases_rows, is_by_recency, is_capturable
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.stages.allocation import UniformAllocator
from kvpolicy.stages.compaction import GatherCompactor
from kvpolicy.stages.selection import TopKSelector
from kvpolicy.stages.smoothing import MeanSmoother

ATTENTION = ("sdpa", "eager")
"""The attention implementations whose masks say which rows of a buffer are in use."""
_DYNAMIC = "Use static=False."
_SLOTS = (
    "slot_positions=True rotates all keys anew for every token. With static=True only a policy by "
    f"recency with every=1 does so, such as recipe 'streamingllm'. {_DYNAMIC}"
)


def static_storage(policy: Pipeline, model: nn.Module, capacity: int | None) -> StaticStorage:
    """Return what keeps the contents of a static cache, or refuse, before any work is done.

    Raises InvalidValueError for a policy that a captured step cannot follow, and for a capacity
    that is missing. Raises UnsupportedModelError for such a model.
    """
    inner = plain_model(model)
    _check_model(inner)
    if biases_rows(policy.compactor):
        raise InvalidValueError(
            f"{policy.titles['compactor']} keeps rows with a bias of their logits, which the "
            f"attention of a captured step does not take. Use compactor='gather'. Or: {_DYNAMIC}"
        )
    if policy.every is None:
        return StaticStorage(form_of=_never_evicting(policy, capacity))
    if policy.every != 1:
        raise InvalidValueError(
            f"with every={policy.every} a token evicts and the next one does not, so there is no "
            f"step that could be captured for all. Use every=1 or every=None, or static=False."
        )
    _check_even(policy)
    if _is_by_recency(policy):
        return StaticStorage(form_of=partial(_ring, policy=policy, known=_rotaries(policy, inner)))
    _check_capturable(policy)
    register_evict_one()
    layers = decoder_config(inner).num_hidden_layers
    return StaticStorage(form_of=partial(_evicting, policy=policy, layers=layers))


def _never_evicting(policy: Pipeline, capacity: int | None) -> Any:
    if policy.running_scorer is not None:
        raise InvalidValueError(
            f"{policy.titles['scorer']} brings its running state up to date with every token, "
            f"which a captured step does only where every=1. {_DYNAMIC}"
        )
    if policy.slot_positions:
        raise InvalidValueError(_SLOTS)
    if capacity is None:
        raise InvalidValueError(
            "static=True needs capacity=..., the most tokens that are decoded behind a prompt, "
            "because the buffers cannot grow."
        )
    register_attend_ragged()
    return partial(_rows, room=capacity)


def _rows(contents: Contents, before: Any, layer: int, *, room: int) -> StaticRows | StaticRagged:
    form: Any = StaticRows if contents.ragged is None else StaticRagged
    found: StaticRows | StaticRagged = form.of(
        contents, room, before if isinstance(before, form) else None
    )
    return found


def _check_even(policy: Pipeline) -> None:
    if not isinstance(policy.budget, int):
        raise InvalidValueError(
            f"budget={policy.budget!r} may keep another number of positions with every token, and "
            "static=True with every=1 has as many rows for each. Give the budget as an int, or use "
            "static=False."
        )
    if type(policy.allocator) is not UniformAllocator:
        raise InvalidValueError(
            f"{policy.titles['allocator']} may give heads other numbers of positions with every "
            "token, and static=True with every=1 has as many rows for each. Use "
            "allocator='uniform', or static=False."
        )


def _is_by_recency(policy: Pipeline) -> bool:
    plain = (
        type(policy.smoother) is MeanSmoother
        and type(policy.selector) is TopKSelector
        and type(policy.compactor) is GatherCompactor
    )
    return plain and is_by_recency(policy.scorer)


def _rotaries(policy: Pipeline, model: PreTrainedModel) -> list[Any] | None:
    """Return by what each layer's sinks are rotated; None if slots are not followed."""
    if not policy.slot_positions:
        return None
    register_turn_sinks()
    config = decoder_config(model)
    return list(rotaries(model, config, list(range(config.num_hidden_layers))))


def _ring(
    contents: Contents, before: Any, layer: int, *, policy: Pipeline, known: list[Any] | None
) -> Any:
    if not _is_full(contents, policy):
        return contents
    before = before if isinstance(before, StaticRing) else None
    rotary = None if known is None else known[layer]
    return StaticRing.of(contents, before, sinks=policy.sinks, rotary=rotary)


def _check_capturable(policy: Pipeline) -> None:
    if policy.slot_positions:
        raise InvalidValueError(_SLOTS)
    for kind, part in policy.parts.items():
        if not (policy.titles[kind].is_proved and is_capturable(part)):
            raise InvalidValueError(
                f"{policy.titles[kind]} may do for each token what only the host knows, so a "
                "step with it cannot be captured and replayed. With static=True and every=1 a "
                "part must say `capturable = True` and be one of kvpolicy's own, whose promises "
                f"are tested. {_DYNAMIC}"
            )


def _evicting(contents: Contents, before: Any, layer: int, *, policy: Pipeline, layers: int) -> Any:
    if not _is_full(contents, policy):
        return contents
    before = before if isinstance(before, StaticEvicting) else None
    return StaticEvicting.of(contents, before, pipeline=policy, layer=layer, num_layers=layers)


def _is_full(contents: Contents, policy: Pipeline) -> bool:
    """Whether each row holds as many tokens as the budget allows: then a step evicts one."""
    slots = contents.slots
    return slots.held == policy.budget and not slots.is_padded


def _check_model(inner: PreTrainedModel) -> None:
    config = supported_config(inner)
    name = type(inner).__name__
    others = [each for each in plain_layers(inner, config) if type(each) is not DynamicLayer]
    if any(len(layers) > 1 for layers in readers_of(name, config).values()):
        raise UnsupportedModelError(
            f"layers of {name} share keys and values, and static=True serves models of which each "
            f"layer has its own. {_DYNAMIC}"
        )
    layers = list(range(config.num_hidden_layers))
    if not others and expanding_modules(inner, config, layers):
        raise UnsupportedModelError(
            f"{name} has latent attention: it expands what a cache hands out, and static=True "
            f"hands out rows that are not written yet. {_DYNAMIC}"
        )
    if others:
        raise UnsupportedModelError(
            f"static=True serves models whose layers all have full attention, but {name} also "
            f"keeps a {type(others[0]).__name__}. {_DYNAMIC}"
        )
    attention = config._attn_implementation or "eager"
    if attention not in ATTENTION:
        raise UnsupportedModelError(
            f"static=True needs masks that say which rows are in use, but {name} has attention "
            f"{attention!r}. Load it with attn_implementation='sdpa' or 'eager', or use "
            "static=False."
        )
    if ranks_of(inner, config) is not None:
        raise UnsupportedModelError(
            f"static=True serves models in one process, but {name} is spread over processes by "
            f"tensor parallelism. {_DYNAMIC}"
        )
