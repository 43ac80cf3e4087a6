"""The cosine of each key and the mean direction of all keys."""

from __future__ import annotations

from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.backend import implementation

__all__ = ["direction_cosines"]


def direction_cosines(keys: Float[Tensor, "B N S D"]) -> Float32[Tensor, "B N S"]:
    """Return the cosine of each key and mean_j k_j / ||k_j||; 0 where one of them is 0.

    Two keys always differ from their mean by the same angle. In float32, rounding would decide
    between them, so cosines are computed in float64. A device without float64 has float32.

    >>> import torch
    >>> direction_cosines(torch.tensor([[[[1.0, 0.0], [5.0, 0.0], [0.0, 2.0]]]]))
    tensor([[[0.8944, 0.8944, 0.4472]]])
    """
    return implementation(direction_cosines, keys)(keys)
