"""Compact: copy the kept rows, and keep the mean of the evicted ones as one more row."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.stages.compaction import gathered
from kvpolicy.stages.selection import Selection
from kvpolicy_kernels import summed_rows


@attrs.frozen(kw_only=True)
class MeanKeepingCompactor:
    """Copies the kept rows, and returns the mean key and the mean value of the n evicted rows.

    The cache keeps them as one more row of each head. Its logit is q mu_k scaling + log(n), so that
    it weighs as much as n equal rows:

        sum_evicted exp(q k) v  ~  n exp(q mu_k) mu_v

    Li et al., 2026, https://arxiv.org/abs/2606.01563, up to order 0 (see README).

    >>> from kvpolicy import Observation, Selection
    >>> rows = torch.tensor([[[[0.0], [4.0], [6.0]]]])
    >>> layer = Observation(queries=torch.zeros(1, 1, 1, 1), keys=rows, values=-rows)
    >>> last = Selection(indices=torch.tensor([[[2]]]), lengths=torch.tensor([[1]]))
    >>> MeanKeepingCompactor().remainder(rows, -rows, last, layer)
    (tensor([[[2.]]]), tensor([[[-2.]]]))
    """

    averages: ClassVar[bool] = True

    def compact(
        self,
        keys: Float[Tensor, "B N S D"],
        values: Float[Tensor, "B N S Dv"],
        selection: Selection,
        observation: Observation,
    ) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
        """Return copies of the kept rows."""
        return gathered(keys, values, selection)

    def remainder(
        self,
        keys: Float[Tensor, "B N S D"],
        values: Float[Tensor, "B N S Dv"],
        selection: Selection,
        observation: Observation,
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B N Dv"]]:
        """Return the mean key and the mean value of what each head evicts; zeros of nothing."""
        rows = selection.evicted(keys.shape[2])
        is_row = (rows < keys.shape[2]).to(torch.float32)
        sums = summed_rows(
            (keys, values), rows, torch.zeros_like(rows), is_row, count=1, ascending=True
        )
        count = is_row.sum(-1).clamp(min=1)[..., None]
        mean_key, mean_value = (
            (total[:, :, 0] / count).to(torch.promote_types(table.dtype, torch.float32))
            for total, table in zip(sums, (keys, values), strict=True)
        )
        return mean_key, mean_value
