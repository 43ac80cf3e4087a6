"""The redundancy of keys, computed without a whole [S, S] matrix."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kvpolicy_kernels import rows_per_block, spans

Retain: TypeAlias = Literal["last", "first", "none"]


def redundancy(
    keys: Float[Tensor, "B N S D"], *, threshold: float, retain: Retain
) -> Float[Tensor, "B N S"]:
    """Return the softmax over positions of a key's mean cosine with all keys.

    The cosine of a key with itself counts as 0. Keys are similar if their cosine is above
    `threshold`. Each key i ignores the last (or first) similar key: their cosine counts as 0. If no
    key is similar to i, it ignores position 0, as in the authors' code.

    >>> keys = torch.tensor([[[[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]]]])
    >>> redundancy(keys, threshold=0.5, retain="none")
    tensor([[[0.2638, 0.3681, 0.3681]]])
    """
    directions = F.normalize(keys.float(), dim=-1, eps=1e-8)
    length = keys.shape[2]
    sums = directions.new_zeros(keys.shape[:3])
    for rows in spans(0, length, rows_per_block(sums.numel(), keys.device)):
        cosines = directions[:, :, rows] @ directions.mT
        cosines.diagonal(rows.start, -2, -1).zero_()
        if retain != "none":
            cosines.scatter_(-1, _spared(cosines > threshold, retain), 0.0)
        sums += cosines.sum(-2)
    return (sums / length).softmax(-1)


def _spared(similar: Tensor, retain: Retain) -> Tensor:
    """Return the last or first column that is True in each row; 0 if none is."""
    length = similar.shape[-1]
    columns = torch.arange(length, dtype=torch.int32, device=similar.device)
    if retain == "last":
        return torch.where(similar, columns, 0).amax(-1, keepdim=True).long()
    return torch.where(similar, columns, length).amin(-1, keepdim=True).long() % length
