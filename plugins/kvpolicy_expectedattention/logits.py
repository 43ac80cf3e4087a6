"""The logarithm of the expected exponential of a logit, for every key."""

from __future__ import annotations

from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_expectedattention.statistics import QueryStatistics
from kvpolicy_kernels import rows_per_block, spans


def expected_logits(
    statistics: QueryStatistics, keys: Float[Tensor, "B N S D"], scaling: float
) -> Float32[Tensor, "B N G S"]:
    """Return log E exp(c q k) = c mu k + c^2 / 2 k S k for Gaussian queries q of each head.

    Keys are read in blocks of bounded size.

    >>> import torch
    >>> head = QueryStatistics(mean=torch.ones(1, 1, 1), covariance=torch.ones(1, 1, 1, 1))
    >>> expected_logits(head, torch.tensor([[[[0.0], [2.0]]]]), 1.0)
    tensor([[[[0., 4.]]]])
    """
    batch, heads, dim = statistics.mean.shape
    mean = statistics.mean.unflatten(1, (keys.shape[1], -1)) * scaling
    found: Tensor = mean.new_empty(batch, keys.shape[1], mean.shape[2], keys.shape[2])
    for block in spans(0, keys.shape[2], rows_per_block(batch * heads * dim, keys.device)):
        some = keys[:, :, None, block].float()
        logits = (some @ mean[..., None])[..., 0]
        if statistics.covariance is not None:
            covariance = statistics.covariance.unflatten(1, (keys.shape[1], -1))
            logits += (some @ covariance).mul_(some).sum(-1) * (scaling**2 / 2)
        found[..., block] = logits
    return found
