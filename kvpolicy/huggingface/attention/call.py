"""One attention call of a model: the layer that handed out its keys observes it."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.huggingface.attention.arguments import Call
from kvpolicy.huggingface.attention.graphs import between_graphs
from kvpolicy.huggingface.attention.grouped import attend_grouped
from kvpolicy.huggingface.attention.listener import Listener
from kvpolicy.huggingface.attention.marks import MARK, listener_of
from kvpolicy.huggingface.attention.points import Function
from kvpolicy.huggingface.attention.position_bias import with_bias
from kvpolicy.huggingface.drafts import Rest
from kvpolicy.huggingface.model.architectures import EXPANSION
from kvpolicy.huggingface.static.attention import STEP, attend

Rows: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Queries [B, H, Q, D], keys [B, N, S, D] and values [B, N, S, Dv] of one attention call."""


def observed(own: Function) -> Function:
    """Return a model's own attention function, with every call on marked keys observed."""

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        # `hasattr` alone: a compiled model without our cache keeps its whole graph.
        if hasattr(key, STEP):
            return attend(own, module, query, key, value, attention_mask, *args, **kwargs)
        if not hasattr(key, MARK):
            return own(module, query, key, value, attention_mask, *args, **kwargs)
        return _observed(own, module, query, key, value, attention_mask, *args, **kwargs)

    return attention


@between_graphs
def _observed(
    own: Function,
    module: Any,
    query: Float[Tensor, "B H Q D"],
    key: Float[Tensor, "B N S D"],
    value: Float[Tensor, "B N S Dv"],
    mask: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    layer = listener_of(key)
    if layer is None:
        return own(module, query, key, value, mask, *args, **kwargs)
    if layer.rest is not None:
        rows = (query, key, value)
        return _read_in_two(own, module, layer, layer.rest, rows, mask, *args, **kwargs)
    return _read(own, module, layer, (query, key, value), mask, *args, **kwargs)


def _read_in_two(
    own: Function,
    module: Any,
    layer: Listener,
    rest: Rest,
    rows: Rows,
    mask: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Let the queries of a prompt attend, evict, and let those of the drafts attend to the rest."""
    query, key, value = rows
    prompt, drafts = query.split([query.shape[2] - rest.count, rest.count], 2)
    try:
        Call(module, kwargs).refuse_what_is_not_computed()
        first, _ = _read(own, module, layer, (prompt, key, value), mask, *args, **kwargs)
        key, value = rest.read()
        if (expansion := getattr(module, EXPANSION, None)) is not None:
            key, value = expansion(key, value)
    except BaseException as error:
        layer.failed(error)
        raise
    second, _ = _observed(own, module, drafts, key, value, mask, *args, **kwargs)
    return torch.cat([first, second], 1), None


def _read(
    own: Function,
    module: Any,
    layer: Listener,
    rows: Rows,
    mask: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    query, key, value = rows
    try:
        call = Call(module, kwargs, layer.session.bias_extent is not None)
        logits = call.logits(query)
        mask = layer.mask_for(module, mask, query)
        if layer.moved is not None:
            key, value = layer.moved
        attending = layer.seen_by(query)
        if call.shows_bias:
            logits, kwargs = with_bias(layer, call, query, logits)
        output = layer.attend(call, attending, mask, logits)
        if output is None and layer.has_evicted:
            output = attend_grouped(own, attending, key, value, mask, logits, kwargs)
        if output is None:
            result = own(module, attending, key, value, mask, *args, **kwargs)
        else:
            result = output, None
        layer.observe(module, query, logits)
    except BaseException as error:
        layer.failed(error)
        raise
    return result
