"""The last or first key that is similar to each key."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require
from kvpolicy_kernels.similar_keys.reference import Retain, SimilarKeys

__all__ = ["SimilarKeys", "similar_keys"]


def similar_keys(
    keys: Float[Tensor, "B N S D"], *, threshold: float, retain: Retain
) -> SimilarKeys:
    """Return the last or first key whose cosine with a key is above `threshold`, and the cosine.

    Position 0 stands for a key without such a key. A key is not similar to itself, and their cosine
    counts as 0. The cosines of all pairs are never stored.

    Raises ValueError for another `retain`.

    >>> import torch
    >>> keys = torch.tensor([[[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]]])
    >>> similar_keys(keys, threshold=0.5, retain="last").positions
    tensor([[[0, 2, 1]]])
    """
    require(retain in ("last", "first"), f"retain must be 'last' or 'first', not {retain!r}")
    return implementation(similar_keys, keys)(keys, threshold=threshold, retain=retain)
