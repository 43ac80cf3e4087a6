"""The logarithm of the expected exponential of a logit of Gaussian queries, for every key."""

from __future__ import annotations

from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require, require_groups

__all__ = ["gaussian_logits"]


def gaussian_logits(
    keys: Float[Tensor, "B N S D"],
    mean: Float[Tensor, "B H D"],
    covariance: Float[Tensor, "B H D D"] | None,
    *,
    scaling: float,
) -> Float32[Tensor, "B H S"]:
    """Return log E exp(c q k) = c mu k + c^2 / 2 k S k for Gaussian queries q of each head.

    c is `scaling`; a `covariance` S of None means 0. Products of keys and S are not stored.

    Raises ValueError if the shapes do not fit.

    >>> import torch
    >>> keys = torch.tensor([[[[0.0], [2.0]]]])
    >>> gaussian_logits(keys, torch.ones(1, 1, 1), torch.ones(1, 1, 1, 1), scaling=1.0)
    tensor([[[0., 4.]]])
    """
    batch, heads, dim = mean.shape
    require_groups(heads, keys.shape[1])
    require(
        keys.shape[0] == batch and keys.shape[-1] == dim,
        f"mean {tuple(mean.shape)} does not fit keys {tuple(keys.shape)}",
    )
    require(
        covariance is None or covariance.shape == (*mean.shape, dim),
        f"covariance {tuple(getattr(covariance, 'shape', ()))} does not fit mean "
        f"{tuple(mean.shape)}",
    )
    given = (keys, mean) if covariance is None else (keys, mean, covariance)
    return implementation(gaussian_logits, *given)(keys, mean, covariance, scaling=scaling)
