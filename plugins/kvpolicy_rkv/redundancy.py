"""The redundancy of keys."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels import (
    gaussian_logits,
    rows_per_block,
    similar_keys,
    spans,
    sums_dtype,
    weighted_values,
)

Retain: TypeAlias = Literal["last", "first", "none"]

LEAST = 1e-8
"""The least norm of a key; a key of zeros has no direction."""


def redundancy(
    keys: Float[Tensor, "B N S D"], *, threshold: float, retain: Retain
) -> Float32[Tensor, "B N S"]:
    """Return the softmax over positions of a key's mean cosine with all keys.

    The cosine of a key with itself counts as 0. Keys are similar if their cosine is above
    `threshold`. Each key i ignores the last (or first) similar key: their cosine counts as 0. If no
    key is similar to i, it ignores position 0, as in the authors' code.

    >>> import torch
    >>> keys = torch.tensor([[[[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]]]])
    >>> redundancy(keys, threshold=0.5, retain="none")
    tensor([[[0.2638, 0.3681, 0.3681]]])
    """
    whole = keys.device.type == "cuda"
    sums = _summed_cosines_at_once(keys) if whole else _summed_cosines(keys)
    if retain != "none":
        found = similar_keys(keys, threshold=threshold, retain=retain)
        sums.scatter_add_(-1, found.positions, -found.cosines)
    return (sums / keys.shape[2]).softmax(-1).float()


def _summed_cosines(keys: Float[Tensor, "B N S D"]) -> Float[Tensor, "B N S"]:
    """Return the sum of a key's cosines with all other keys.

    That is its product with the sum of all directions, less its product with itself.
    """
    blocks = list(spans(0, keys.shape[2], rows_per_block(2 * keys[:, :, 0].numel(), keys.device)))
    total = keys.new_zeros((*keys.shape[:2], 1, keys.shape[3]), dtype=sums_dtype(keys.device))
    for block in blocks:
        total += _directions(keys[:, :, block]).to(total.dtype).sum(2, keepdim=True)
    sums = total.new_empty(keys.shape[:3])
    for block in blocks:
        own = _directions(keys[:, :, block]).to(total.dtype)
        sums[..., block] = ((total - own) * own).sum(-1)
    return sums


def _summed_cosines_at_once(keys: Float[Tensor, "B N S D"]) -> Float[Tensor, "B N S"]:
    """Return the same by kernels that read keys of any length without a copy."""
    norms = torch.linalg.vector_norm(keys, dim=-1, dtype=torch.float32)
    over_norms = 1 / norms.clamp_min(LEAST)
    total = weighted_values(over_norms, keys)
    with_all: Tensor = gaussian_logits(keys, total, None, scaling=1.0) * over_norms
    # The product with itself is 1, or 0 for a key of zeros.
    return with_all.sub_((norms * over_norms).square_()).to(sums_dtype(keys.device))


def _directions(keys: Float[Tensor, "*rows D"]) -> Float32[Tensor, "*rows D"]:
    return F.normalize(keys.float(), dim=-1, eps=LEAST)
