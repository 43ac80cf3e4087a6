"""One attention call of a model: the layer that handed out its keys observes it."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from kvpolicy.huggingface.attention.arguments import Call
from kvpolicy.huggingface.attention.graphs import between_graphs
from kvpolicy.huggingface.attention.grouped import attend_grouped
from kvpolicy.huggingface.attention.marks import MARK, listener_of
from kvpolicy.huggingface.attention.points import Function
from kvpolicy.huggingface.static.attention import STEP, attend


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
    try:
        call = Call(module, kwargs)
        logits = call.logits(query)
        mask = layer.mask_for(module, mask, query)
        if layer.moved is not None:
            key, value = layer.moved
        attending = layer.seen_by(query)
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
