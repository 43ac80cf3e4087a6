"""The error that losing a position causes in the output of each query, averaged over them."""

from __future__ import annotations

from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.checks import (
    require,
    require_factors,
    require_sinks,
    require_weights,
    require_window,
)
from kvpolicy_kernels.windowed_reconstruction_error import reference

__all__ = ["windowed_reconstruction_error"]


def windowed_reconstruction_error(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    values: Float[Tensor, "B N S Dv"],
    weights: Float[Tensor, " W"] | Float[Tensor, "B W"],
    factors: Float[Tensor, "H R Dv"] | None,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    normalize: bool = False,
    causal: bool = True,
) -> Float32[Tensor, "B H S"]:
    """Return the error of each query's own output, averaged over the window by `weights`.

    s_i = sum_t weights_t odds(a_ti) ||R_h (o_t - v_i)||    with    o_t = sum_i a_ti v_i

    Weights are the same for all sequences, or each has its own.
    a_t is the causal attention of query t; positions behind it have no part in its error. If
    `causal` is False, every query sees all positions. With `normalize`, each norm is divided by
    ||R_h o_t||. With `softcap` c, logits x become c tanh(x / c). `sinks` has a learned sink for
    each query head: one more logit in each softmax of the head, of value zero. `factors` None
    measures in value space, without R_h.

    Raises ValueError if the shapes do not fit.

    >>> import torch
    >>> values = torch.tensor([[[[0.0], [1.0]]]])
    >>> ones = torch.ones(1, 1, 1, 1)
    >>> windowed_reconstruction_error(
    ...     ones, torch.zeros_like(values), values, torch.ones(1), None, scaling=1.0
    ... )
    tensor([[[0.5000, 0.5000]]])
    """
    require_window(queries, keys)
    require(
        values.shape[:3] == keys.shape[:3],
        f"keys {tuple(keys.shape)} and values {tuple(values.shape)} differ in batch, heads or "
        "positions",
    )
    require_weights(weights, queries)
    require_sinks(sinks, queries)
    require_factors(factors, queries.shape[1], values.shape[-1])
    return reference.windowed_reconstruction_error(
        queries, keys, values, weights, factors,
        scaling=scaling, softcap=softcap, sinks=sinks, normalize=normalize, causal=causal,
    )  # fmt: skip
