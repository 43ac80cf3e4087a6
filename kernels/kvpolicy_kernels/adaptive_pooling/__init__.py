"""How far attention drifts over the window, and the pooling that follows it."""

from __future__ import annotations

from jaxtyping import Float64, Int64
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require

__all__ = ["adaptive_pooling", "mean_drift"]


def mean_drift(means: Float64[Tensor, "B H W"], count: int) -> Float64[Tensor, "B H"]:
    """Return the mean over the first half of a window's queries minus that over the second half.

    `means` are means of `count` whole numbers, as of `row_statistics`. Their sums are restored and
    added exactly, so equal halves have a drift of exactly 0. Of an odd number of queries the first
    half has one less.

    Raises ValueError for fewer than two queries, or a `count` below 1.

    >>> import torch
    >>> mean_drift(torch.tensor([[[1.0, 2.0, 4.5, 5.5]]]).double(), 2)
    tensor([[-3.5000]], dtype=torch.float64)
    """
    window = means.shape[-1]
    require(window >= 2, f"a window of {window} queries has no halves: it must have at least 2")
    require(count >= 1, f"count must be at least 1, not {count}")
    return implementation(mean_drift, means)(means, count)


def adaptive_pooling(
    drift: Float64[Tensor, "B H"], *, width: int, scale: float
) -> tuple[Int64[Tensor, "B H"], Int64[Tensor, "B H"]]:
    """Return each head's pooling width and shift for a drift of T positions.

    K = max(width, 2 floor(|T| / scale) + 1);  shift = floor(T / scale), plus 1 unless T > 0

    The plus 1 is from the code of ReST-KV's authors. It rounds a negative T / scale towards zero,
    except that exact multiples, also 0, get 1 more.

    Raises ValueError for a `scale` that is not above 0.

    >>> import torch
    >>> drift = torch.tensor([[-7.0, 0.0, 3.0, 7.0]], dtype=torch.float64)
    >>> adaptive_pooling(drift, width=3, scale=2.0)
    (tensor([[7, 3, 3, 7]]), tensor([[-3,  1,  1,  3]]))
    """
    require(scale > 0, f"scale must be above 0, not {scale}")
    return implementation(adaptive_pooling, drift)(drift, width=width, scale=scale)
