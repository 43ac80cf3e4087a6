"""Where in the sequence each query of the window looks."""

from __future__ import annotations

from jaxtyping import Float, Float64
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require, require_window

__all__ = ["row_statistics"]


def row_statistics(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    count: int,
    *,
    scaling: float,
    softcap: float | None = None,
) -> Float64[Tensor, "B H W"]:
    """Mean position of the `count` most attended positions of every query.

    Query t sees the positions 0 .. S - W + t; one that sees fewer than `count` uses them all. Of
    equal logits at the cut the lower positions count, and a logit of NaN is as low as one of -inf.
    A softcap changes no order, and so no result.

    >>> import torch
    >>> keys = torch.tensor([[[[3.0], [2.0], [1.0], [0.0]]]])
    >>> row_statistics(torch.tensor([[[[1.0], [-1.0]]]]), keys, 2, scaling=1.0)
    tensor([[[0.5000, 2.5000]]], dtype=torch.float64)
    """
    require_window(queries, keys)
    require(count >= 1, f"count must be at least 1: {count}")
    return implementation(row_statistics, queries, keys)(
        queries, keys, count, scaling=scaling, softcap=softcap
    )
