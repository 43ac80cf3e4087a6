"""The mean position that each query of the window attends to most."""

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
    """Return the mean of the `count` most attended positions of each query.

    Query t sees the positions 0 .. S - W + t. A query that sees fewer than `count` takes the mean
    of them all. Of equal logits at the cut, those of lower positions count. A logit of NaN ranks as
    -inf. A softcap keeps the order of logits, so it does not change the result.

    Raises ValueError if the shapes do not fit, or for a `count` below 1.

    >>> import torch
    >>> keys = torch.tensor([[[[3.0], [2.0], [1.0], [0.0]]]])
    >>> row_statistics(torch.tensor([[[[1.0], [-1.0]]]]), keys, 2, scaling=1.0)
    tensor([[[0.5000, 2.5000]]], dtype=torch.float64)
    """
    require_window(queries, keys)
    require(count >= 1, f"count must be at least 1, not {count}")
    return implementation(row_statistics, queries, keys)(
        queries, keys, count, scaling=scaling, softcap=softcap
    )
