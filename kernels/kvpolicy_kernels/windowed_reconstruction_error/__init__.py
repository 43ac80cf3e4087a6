"""How much each query's own output would change without a position, averaged over the window."""

from __future__ import annotations

from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.checks import require, require_factors, require_sinks, require_window
from kvpolicy_kernels.windowed_reconstruction_error import reference

__all__ = ["windowed_reconstruction_error"]


def windowed_reconstruction_error(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    values: Float[Tensor, "B N S Dv"],
    weights: Float[Tensor, " W"],
    factors: Float[Tensor, "H R Dv"] | None,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    normalize: bool = False,
) -> Float32[Tensor, "B H S"]:
    """Average the error of every query's own output over the window.

    s_i = sum_t weights_t odds(a_ti) |R_h (o_t - v_i)|, with o_t = sum_i a_ti v_i; with `normalize`
    each norm is divided by |R_h o_t|. Positions after a query add nothing to its sum. A head's sink
    is one more logit of each of its queries, of value zero.

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
        f"keys {tuple(keys.shape)} and values {tuple(values.shape)} differ in positions",
    )
    require(
        weights.shape == queries.shape[2:3],
        f"{tuple(weights.shape)} weights for a window of {queries.shape[2]} queries",
    )
    require_sinks(sinks, queries)
    require_factors(factors, queries.shape[1], values.shape[-1])
    return reference.windowed_reconstruction_error(
        queries, keys, values, weights, factors,
        scaling=scaling, softcap=softcap, sinks=sinks, normalize=normalize,
    )  # fmt: skip
