"""Attach caches to their models: whose attention is observed, and for how long."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import attrs
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from kvpolicy.errors import CacheStateError, UnsupportedModelError
from kvpolicy.huggingface.attention.call import observed
from kvpolicy.huggingface.attention.expansion import marked_expansion
from kvpolicy.huggingface.attention.mask_memo import noted
from kvpolicy.huggingface.attention.points import (
    Point,
    Wrap,
    are_wrapped,
    attention_points,
    mask_points,
    method_point,
)
from kvpolicy.huggingface.generation import checked_generate, checked_inputs
from kvpolicy.huggingface.model.adapters import model_inside
from kvpolicy.huggingface.model.architectures import DROPS_QUERIES, EXPANSION
from kvpolicy.huggingface.model.config import decoder_config
from kvpolicy.huggingface.model.rotary_positions import note_when_compiled, noted_positions
from kvpolicy.huggingface.model.shared_layers import keeping_outputs, keeping_queries
from kvpolicy.huggingface.repetition.fit import Repeating
from kvpolicy.huggingface.repetition.reading import reading_twice
from kvpolicy.huggingface.repetition.residual import noting_residual

_lock = threading.RLock()
_open: weakref.WeakKeyDictionary[Any, Attachment] = weakref.WeakKeyDictionary()
"""Every open cache, with what it is attached to."""


@attrs.frozen(eq=False)
class Attachment:
    """The places in which one model's attention is observed for its caches."""

    config: PreTrainedConfig
    attention: str
    """The name of the attention implementation, as the config has it."""
    points: tuple[tuple[Point, Wrap], ...]
    compiled: Sequence[nn.Module] = ()
    """The modules whose positions are noted in compiled forwards, too."""

    def open(self, cache: Any) -> None:
        """Observe the attention of calls on this cache's keys."""
        with _lock:
            cache.is_observed = True
            # First: a cache that is collected meanwhile would take unused wraps away.
            _open[cache] = self
            for point, wrap in self.points:
                point.add(wrap)
            _note_compiled()
        # A cache that is dropped without being closed leaves the model as it was found, too.
        weakref.finalize(cache, self._remove_unused)

    def close(self, cache: Any) -> None:
        """Stop observing; a place without open caches has what was found there."""
        with _lock:
            cache.is_observed = False
            _open.pop(cache, None)
            self._remove_unused()

    def _remove_unused(self) -> None:
        with _lock:
            used = {point for each in _open.values() for point, _ in each.points}
            for point, wrap in self.points:
                if point not in used:
                    point.remove(wrap)
            _note_compiled()

    def check(self, cache: object) -> None:
        """Raise CacheStateError unless calls on this cache's keys are observed."""
        name = self.config._attn_implementation or "eager"
        if name != self.attention:
            raise CacheStateError(
                f"the model's attention was changed from {self.attention!r} to {name!r} while "
                "this cache was in use. Change it back, or make a new cache: policy.cache(model)."
            )
        if cache not in _open or not are_wrapped(self.points):
            raise CacheStateError(
                "this cache was closed, by kvpolicy.restore(model) or by leaving its `with` block: "
                "eviction cannot observe the model. Use the cache inside its `with`, or make a new "
                "one: policy.cache(model)."
            )


def _note_compiled() -> None:
    note_when_compiled(module for each in _open.values() for module in each.compiled)


def is_open(cache: object) -> bool:
    """Whether an object is a cache of ours that is open."""
    try:
        return cache in _open
    except TypeError:
        return False


_INPUTS, _GENERATE = partial(checked_inputs, is_open), partial(checked_generate, is_open)
_TWICE = partial(reading_twice, is_open)
_QUERIES, _OUTPUTS = partial(keeping_queries, is_open), partial(keeping_outputs, is_open)


def attachment(
    model: PreTrainedModel,
    rotaries: Sequence[nn.Module] = (),
    expanding: Sequence[nn.Module] = (),
    *,
    repeating: Repeating | None = None,
    compiled: bool = True,
) -> Attachment:
    """Return where a model's attention can be observed; nothing is changed yet.

    The positions that `rotaries` are called with are noted too, with `compiled` in compiled
    forwards as well. `expanding` are modules that make keys and values of latents. `repeating` are
    those that a second pass over a prompt needs.
    """
    config = decoder_config(model)
    attention = [(point, observed) for point in attention_points(model.modules(), config)]
    masks = [(point, noted) for point in mask_points(config)]
    generation: list[tuple[Point, Wrap]] = [
        (method_point(type(model), name), wrap)
        for name, wrap in (("prepare_inputs_for_generation", _INPUTS), ("generate", _GENERATE))
        if hasattr(model, name)
    ]
    name = config._attn_implementation or "eager"
    positions = [(method_point(type(each), "forward"), noted_positions) for each in rotaries]
    dropping = {type(each) for each in model.modules() if hasattr(each, DROPS_QUERIES)}
    queries: list[tuple[Point, Wrap]] = [
        (method_point(each, name), wrap)
        for each in dropping
        for name, wrap in ((DROPS_QUERIES, _QUERIES), ("forward", _OUTPUTS))
    ]
    expansions = [
        (method_point(each, EXPANSION), marked_expansion)
        for each in dict.fromkeys(map(type, expanding))
    ]
    points: tuple[tuple[Point, Wrap], ...] = (
        *(*attention, *masks, *generation),
        *(*positions, *queries, *expansions),
        *(() if repeating is None else _second_pass(repeating)),
    )
    return Attachment(config, name, points, tuple(rotaries) if compiled else ())


def _second_pass(repeating: Repeating) -> list[tuple[Point, Wrap]]:
    """Return where prompts are read twice, and where the residual stream is observed meanwhile."""
    layers = dict.fromkeys(map(type, repeating.layers))
    noted_layers = [(method_point(each, "forward"), noting_residual) for each in layers]
    return [(method_point(type(repeating.decoder), "forward"), _TWICE), *noted_layers]


def restore(model: Any) -> None:
    """Close every open cache of a model, which brings its attention back as it was found.

    Raises UnsupportedModelError for anything but a model of transformers.
    """
    model = model_inside(model)
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"kvpolicy.restore needs a transformers PreTrainedModel, not a {type(model).__name__}."
        )
    config = decoder_config(model)
    with _lock:
        mine = [(each, to) for each, to in _open.items() if to.config is config]
    for cache, attached in mine:
        attached.close(cache)
