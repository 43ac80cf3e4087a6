"""Compact, and set the key channels to zero that are least important for the last queries."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.options import as_float, count, natural, share
from kvpolicy.stages.compaction import gathered
from kvpolicy.stages.selection import Selection
from kvpolicy_think.channels import channel_importance, least_important


@attrs.frozen(kw_only=True)
class ChannelPruningCompactor:
    """Copies the kept rows, and sets channels of their keys to zero.

    The last `recent` kept keys of a head are not pruned. In the others, the int(ratio D) channels
    with the lowest mean_t q_td^2 mean_i k_id^2 become zero. The means are over the last `window`
    queries shown, the query heads of the group, and the kept keys. A key is pruned once: a key with
    as many zeros does not change, and is left out of the mean. A head that evicts no position is
    not pruned.

    Zeros need as much memory as other numbers, so only evicted rows save memory.

    Xu et al., ICLR 2025, https://arxiv.org/abs/2407.21018.

    >>> from kvpolicy import Observation, Selection
    >>> keys = torch.tensor([[[[9.0, 9.0], [3.0, 1.0], [2.0, 1.0]]]])
    >>> layer = Observation(queries=torch.ones(1, 1, 1, 2), keys=keys, values=keys)
    >>> last = Selection(indices=torch.tensor([[[1, 2]]]), lengths=torch.tensor([[2]]))
    >>> ChannelPruningCompactor(ratio=0.5, recent=1).compact(keys, keys, last, layer)[0]
    tensor([[[[3., 0.],
              [2., 1.]]]])
    """

    position_bias: ClassVar[bool] = True

    ratio: float = attrs.field(default=0.4, converter=as_float, validator=share)
    recent: int = attrs.field(default=32, validator=natural)
    window: int = attrs.field(default=32, validator=count)

    def compact(
        self,
        keys: Float[Tensor, "B N S D"],
        values: Float[Tensor, "B N S Dv"],
        selection: Selection,
        observation: Observation,
    ) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K Dv"]]:
        """Return the kept rows. Their keys have zeros in the pruned channels."""
        kept_keys, kept_values = gathered(keys, values, selection)
        pruned = int(keys.shape[-1] * self.ratio)
        if pruned == 0:
            return kept_keys, kept_values
        full = (kept_keys == 0).sum(-1) < pruned
        is_kept = selection.indices < keys.shape[2]
        queries = observation.queries[:, :, -self.window :]
        importance = channel_importance(queries, kept_keys, full & is_kept)
        channels = least_important(importance, pruned)[:, :, None]
        thinned = full & self._is_old(is_kept, keys.shape[2])
        return kept_keys.masked_fill(thinned[..., None] & channels, 0), kept_values

    def _is_old(self, is_kept: Bool[Tensor, "B N K"], length: int) -> Bool[Tensor, "B N K"]:
        """Mark all kept rows of each head that evicts, except the last `recent`."""
        lengths = is_kept.sum(-1, keepdim=True)
        slots = torch.arange(is_kept.shape[-1], device=is_kept.device)
        return (slots < lengths - self.recent) & (lengths < length)
