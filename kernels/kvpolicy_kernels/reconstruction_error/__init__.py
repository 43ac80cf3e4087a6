"""How much a head's output would change without a position.

Without position i, renormalised attention changes the output o of a head by odds(a_i) (o - v_i)
exactly: the leave-one-out error that ReST-KV (An et al., ICLR 2026,
https://openreview.net/forum?id=PhEHuo7oMm) ranks positions by.
"""

from __future__ import annotations

from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require, require_groups, require_sinks, require_window
from kvpolicy_kernels.reconstruction_error import factors as _factors
from kvpolicy_kernels.reconstruction_error import joint, windowed
from kvpolicy_kernels.reconstruction_error.reference import odds

__all__ = [
    "head_factors",
    "joint_reconstruction_error",
    "odds",
    "reconstruction_error",
    "weighted_values",
    "windowed_reconstruction_error",
]


def head_factors(weight: Float[Tensor, "M columns"], heads: int) -> Float32[Tensor, "H R D"]:
    """Factor the output projection: |R_h x| = |W_h x| for every head h and every x.

    `weight` is that of the projection, [M, H D]; W_h are its columns of head h. R_h has
    R = min(M, D) rows, so norms in the model's M dimensions cost D of them. Compute once per model.

    >>> import torch
    >>> head_factors(torch.randn(64, 4 * 8), heads=4).shape
    torch.Size([4, 8, 8])
    """
    require(
        heads >= 1 and weight.shape[1] % heads == 0,
        f"{weight.shape[1]} columns do not divide among {heads} heads",
    )
    return _factors.head_factors(weight, heads)


def reconstruction_error(
    attention: Float[Tensor, "B H S"],
    values: Float[Tensor, "B N S D"],
    output: Float[Tensor, "B H D"],
    factors: Float[Tensor, "H R D"] | None,
    *,
    tau: float = 1.0,
) -> Float32[Tensor, "B H S"]:
    """odds(attention_i) |R_h (output_h - v_i)| ** tau; `factors` None measures in value space.

    >>> import torch
    >>> values = torch.tensor([[[[0.0, 0.0], [3.0, 4.0]]]])
    >>> attention = torch.tensor([[[0.5, 0.5]]])
    >>> reconstruction_error(attention, values, torch.zeros(1, 1, 2), None)
    tensor([[[0., 5.]]])
    """
    _check(attention, values)
    _check_factors(factors, attention.shape[1], values.shape[-1])
    require(tau > 0, f"tau must be positive: {tau}")
    require(
        output.shape == (*attention.shape[:2], values.shape[-1]),
        f"output {tuple(output.shape)} does not fit attention {tuple(attention.shape)} "
        f"and values {tuple(values.shape)}",
    )
    tensors = (values, output) if factors is None else (values, output, factors)
    errors: Tensor = implementation(__name__, *tensors).reconstruction_error(
        attention, values, output, factors, tau=tau
    )
    return errors


def joint_reconstruction_error(
    odds: Float[Tensor, "B H S"],
    values: Float[Tensor, "B N S D"],
    output: Float[Tensor, "B H D"],
    factors: Float[Tensor, "N R GD"] | None,
) -> Float[Tensor, "B N S"]:
    """Norm of sum_h odds_hi R_h (output_h - v_i) over the query heads h that share a position.

    What the output loses behind the projection, exactly, if one key/value head loses position i.
    `factors` are `head_factors(weight, heads=N)`: of the G D columns that a group's heads own. None
    measures in value space, where heads do not mix. In the precision of `odds`.

    >>> import torch
    >>> odds, values = torch.ones(1, 2, 2), torch.tensor([[[[0.0], [3.0]]]])
    >>> joint_reconstruction_error(
    ...     odds, values, torch.full((1, 2, 1), 1.5), torch.tensor([[[1.0, 1.0]]]))
    tensor([[[3., 3.]]])
    """
    _check(odds, values)
    if factors is not None:
        groups = odds.shape[1] // values.shape[1]
        _check_factors(factors, values.shape[1], groups * values.shape[-1])
    return joint.joint_reconstruction_error(odds, values, output, factors)


def weighted_values(
    attention: Float[Tensor, "B H S"], values: Float[Tensor, "B N S D"]
) -> Float32[Tensor, "B H D"]:
    """Sum the values by attention, per query head: sum_i attention_i v_i.

    >>> import torch
    >>> weighted_values(torch.ones(1, 2, 3), torch.ones(1, 1, 3, 1))
    tensor([[[3.],
             [3.]]])
    """
    _check(attention, values)
    sums: Tensor = implementation(__name__, values).weighted_values(attention, values)
    return sums


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
    _check_factors(factors, queries.shape[1], values.shape[-1])
    return windowed.windowed_reconstruction_error(
        queries, keys, values, weights, factors,
        scaling=scaling, softcap=softcap, sinks=sinks, normalize=normalize,
    )  # fmt: skip


def _check(attention: Tensor, values: Tensor) -> None:
    require(
        (attention.shape[0], attention.shape[2]) == (values.shape[0], values.shape[2]),
        f"attention {tuple(attention.shape)} and values {tuple(values.shape)} differ in batch "
        "or positions",
    )
    require_groups(attention.shape[1], values.shape[1])


def _check_factors(factors: Tensor | None, heads: int, dim: int) -> None:
    if factors is not None:
        require(
            factors.shape[0] == heads and factors.shape[-1] == dim,
            f"factors {tuple(factors.shape)} do not fit {heads} heads of dim {dim}",
        )
