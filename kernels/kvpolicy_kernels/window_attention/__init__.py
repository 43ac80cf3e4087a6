"""Attention of the observation window, summed over its queries by weights."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require_sinks, require_weights, require_window
from kvpolicy_kernels.window_attention.reference import WindowAttention

__all__ = ["WindowAttention", "window_attention"]


def window_attention(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    weights: Float[Tensor, " W"] | Float[Tensor, "B W"],
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    causal: bool = True,
) -> WindowAttention:
    """Return the window's attention, summed over its queries; [B H W S] is never stored.

    attention_i = sum_t weights_t softmax_i(scaling q_t . k_i)

    Weights are the same for all sequences, or each has its own.
    Query t sees the positions 0 .. S - W + t, or all positions if `causal` is False. With `softcap`
    c, logits x become c tanh(x / c) before the softmax. `sinks` has a learned sink for each query
    head: one more logit in each softmax of the head, without a position.

    Raises ValueError if the shapes do not fit.

    >>> import torch
    >>> queries, keys = torch.zeros(1, 2, 2, 8), torch.zeros(1, 1, 4, 8)
    >>> window_attention(queries, keys, torch.tensor([0.0, 1.0]), scaling=1.0).attention[0, 0]
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    require_window(queries, keys)
    require_weights(weights, queries)
    require_sinks(sinks, queries)
    tensors = (queries, keys, weights)
    given = tensors if sinks is None else (*tensors, sinks)
    return implementation(window_attention, *given)(
        queries, keys, weights, scaling=scaling, softcap=softcap, sinks=sinks, causal=causal
    )
