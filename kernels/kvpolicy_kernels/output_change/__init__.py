"""How much outputs change, in the first order, if a position's key and value become zero."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require, require_sinks, require_weights, require_window

__all__ = ["output_change"]


def output_change(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    values: Float[Tensor, "B N S Dv"],
    weights: Float[Tensor, " W"] | Float[Tensor, "B W"],
    zeroed: Literal["joint", "key", "value"] = "joint",
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    causal: bool = True,
) -> Float32[Tensor, "B H S"]:
    """Return the squared change of each query's output, summed over the window by `weights`.

        value   sum_t weights_t a_ti^2 ||v_i||^2
        key     sum_t weights_t a_ti^2 ||l_ti (v_i - o_t)||^2
        joint   sum_t weights_t a_ti^2 ||v_i + l_ti (v_i - o_t)||^2

    l_t are the logits of query t, a_t their softmax and o_t = sum_i a_ti v_i. Positions behind a
    query have no part in its change; if `causal` is False, it sees all. With `softcap` c, l are the
    logits after c tanh(x / c). `sinks` has a learned sink for each query head: one more logit in
    each softmax of the head, of value zero. [B H W S] is never stored. Weights are the same for all
    sequences, or each has its own.

    Raises ValueError if the shapes do not fit, or `zeroed` is another word.

    >>> import torch
    >>> values = torch.tensor([[[[0.0], [4.0]]]])
    >>> ones = torch.ones(1, 1, 1, 1)
    >>> for zeroed in ("value", "key", "joint"):
    ...     output_change(ones, torch.ones(1, 1, 2, 1), values, torch.ones(1), zeroed, scaling=1.0)
    tensor([[[0., 4.]]])
    tensor([[[1., 1.]]])
    tensor([[[1., 9.]]])
    """
    require_window(queries, keys)
    require(
        values.shape[:3] == keys.shape[:3],
        f"keys {tuple(keys.shape)} and values {tuple(values.shape)} differ in batch, heads or "
        "positions",
    )
    require_weights(weights, queries)
    require_sinks(sinks, queries)
    require(
        zeroed in ("joint", "key", "value"),
        f"zeroed must be 'joint', 'key' or 'value', not {zeroed!r}",
    )
    tensors = (queries, keys, values, weights)
    given = tensors if sinks is None else (*tensors, sinks)
    return implementation(output_change, *given)(
        queries, keys, values, weights, zeroed,
        scaling=scaling, softcap=softcap, sinks=sinks, causal=causal,
    )  # fmt: skip
