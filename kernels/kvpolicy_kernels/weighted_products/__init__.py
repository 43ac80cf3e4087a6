"""Products of a value's channels, summed with a weight for each position and query head."""

from __future__ import annotations

from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require_attention

__all__ = ["weighted_products"]


def weighted_products(
    weights: Float[Tensor, "B H S"], values: Float[Tensor, "B N S D"]
) -> Float32[Tensor, "B H D D"]:
    """Return sum_i w_i v_i v_i^T for each query head. No weighted copy of the values is stored.

    Raises ValueError if the shapes do not fit.

    >>> import torch
    >>> weighted_products(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[[1.0, 0.0], [1.0, 3.0]]]]))
    tensor([[[[ 3.,  6.],
              [ 6., 18.]]]])
    """
    require_attention(weights, values)
    return implementation(weighted_products, values)(weights, values)
