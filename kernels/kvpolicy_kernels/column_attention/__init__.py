"""Attention that each position receives, summed over all queries."""

from __future__ import annotations

from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require_sinks, require_window

__all__ = ["column_attention"]


def column_attention(
    queries: Float[Tensor, "B H Q D"],
    keys: Float[Tensor, "B N S D"],
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    causal: bool = True,
) -> Float32[Tensor, "B H S"]:
    """Return the attention to each position, summed over the queries; [B H Q S] is never stored.

    attention_i = sum_t softmax_i(scaling q_t . k_i)

    The Q queries are those of the last Q positions. Query t sees the positions 0 .. S - Q + t, or
    all positions if `causal` is False. With `softcap` c, logits x become c tanh(x / c) before the
    softmax. `sinks` has a learned sink for each query head: one more logit in each softmax of the
    head, without a position.

    Raises ValueError if the shapes do not fit.

    >>> import torch
    >>> queries, keys = torch.zeros(1, 2, 2, 8), torch.zeros(1, 1, 2, 8)
    >>> column_attention(queries, keys, scaling=1.0)[0, 0]
    tensor([1.5000, 0.5000])
    >>> column_attention(queries, keys, scaling=1.0, causal=False)[0, 0]
    tensor([1., 1.])
    """
    require_window(queries, keys)
    require_sinks(sinks, queries)
    given = (queries, keys) if sinks is None else (queries, keys, sinks)
    return implementation(column_attention, *given)(
        queries, keys, scaling=scaling, softcap=softcap, sinks=sinks, causal=causal
    )
