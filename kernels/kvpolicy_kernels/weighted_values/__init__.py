"""Values summed by attention: a head's output."""

from __future__ import annotations

from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require_attention

__all__ = ["weighted_values"]


def weighted_values(
    attention: Float[Tensor, "B H S"], values: Float[Tensor, "B N S D"]
) -> Float32[Tensor, "B H D"]:
    """Return sum_i attention_i v_i for each query head.

    Raises ValueError if the shapes do not fit.

    >>> import torch
    >>> weighted_values(torch.ones(1, 2, 3), torch.ones(1, 1, 3, 1))
    tensor([[[3.],
             [3.]]])
    """
    require_attention(attention, values)
    return implementation(weighted_values, values)(attention, values)
