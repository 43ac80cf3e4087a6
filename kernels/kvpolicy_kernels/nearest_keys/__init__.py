"""The key that is most similar to each of some rows."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require
from kvpolicy_kernels.nearest_keys.reference import NearestKeys

__all__ = ["NearestKeys", "nearest_keys"]


def nearest_keys(
    keys: Float[Tensor, "B N S D"],
    rows: Int[Tensor, "B N E"],
    others: Float[Tensor, "B N K D"],
    is_other: Bool[Tensor, "B N K"] | None,
) -> NearestKeys:
    """Return for each of the given rows of `keys` the slot of the most similar of the others.

    Similar is what has the largest cosine; of equal ones the first. Where `is_other` is False there
    is no key; None: everywhere is one. A head without others gets slot 0 and the cosine -1, and so
    may a row of S or more. The cosines of all pairs are never stored.

    Raises ValueError if the shapes do not fit.

    >>> import torch
    >>> keys, rows = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[0]]])
    >>> others = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    >>> nearest_keys(keys, rows, others, torch.ones(1, 1, 2).bool())
    NearestKeys(slots=tensor([[[1]]], dtype=torch.int32), cosines=tensor([[[0.8000]]]))
    """
    require(
        keys.shape[:2] == rows.shape[:2] == others.shape[:2]
        and keys.shape[-1] == others.shape[-1]
        and (is_other is None or is_other.shape == others.shape[:3]),
        f"keys {tuple(keys.shape)}, rows {tuple(rows.shape)}, others {tuple(others.shape)} and "
        f"is_other {None if is_other is None else tuple(is_other.shape)} do not fit",
    )
    given = [keys, others, rows] if is_other is None else [keys, others, rows, is_other]
    return implementation(nearest_keys, *given)(keys, rows, others, is_other)
