"""The Triton kernels: those of `window_attention`, with weights of 1."""

from __future__ import annotations

from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.window_attention.kernel import folded, unsupported

__all__ = ["column_attention", "unsupported"]


def column_attention(
    queries: Float[Tensor, "B H Q D"],
    keys: Float[Tensor, "B N S D"],
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    causal: bool = True,
) -> Float32[Tensor, "B H S"]:
    """Sum over all queries as if they were one window."""
    return folded(
        queries, keys, None, scaling=scaling, softcap=softcap, sinks=sinks, causal=causal
    ).attention
