"""Where a model makes keys and values of latents: the marks of the latents go on to the keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from kvpolicy.huggingface.attention.graphs import between_graphs
from kvpolicy.huggingface.attention.marks import MARK, listener_of, mark


def marked_expansion(own: Callable[..., Any]) -> Callable[..., Any]:
    """Return a model's own expansion of latents, whose keys are marked as the latents are."""

    def expansion(module: Any, latents: Tensor, rotary_keys: Tensor) -> Any:
        # `hasattr` alone: a compiled model without our cache keeps its whole graph.
        if not hasattr(latents, MARK):
            return own(module, latents, rotary_keys)
        return _marked(own, module, latents, rotary_keys)

    return expansion


@between_graphs
def _marked(
    own: Callable[..., Any], module: Any, latents: Tensor, rotary_keys: Tensor
) -> tuple[Tensor, Tensor]:
    layer = listener_of(latents)
    keys, values = own(module, latents, rotary_keys)
    if layer is not None:
        layer.learn_expanded(keys, values)
        mark(keys, layer)
    return keys, values
