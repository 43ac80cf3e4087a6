"""The partitions of the text, and the rows of a layer that belong to each."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy_kernels import deviation, rows_per_block, spans


@attrs.frozen(kw_only=True, eq=False)
class Partitions:
    """The partition of each row. Partitions that still hold a row are numbered from 1.

    Number 0 is for the sinks. `judged` marks the rows that can be compared with a later partition:
    one that is complete and still holds a row.
    """

    members: Int[Tensor, "B N S"]
    judged: Bool[Tensor, "B N S"]
    last: int

    def deviations(self, states: Float[Tensor, "B N S D"]) -> Float[Tensor, "B N S"]:
        """Return each row's deviation from the partition after its own, in blocks."""
        low, high = self._ranges(states)
        behind = (self.members + 1).clamp(max=self.last).unsqueeze(-1)
        found = torch.empty_like(self.members, dtype=torch.float32)
        for rows in spans(
            0, states.shape[2], rows_per_block(5 * states[:, :, 0].numel(), found.device)
        ):
            index = behind[:, :, rows].expand(-1, -1, -1, states.shape[-1])
            own = (table.gather(2, index) for table in (low, high))
            found[:, :, rows] = deviation(states[:, :, rows], *own)
        return found

    def _ranges(
        self, states: Float[Tensor, "B N S D"]
    ) -> tuple[Float[Tensor, "B N p D"], Float[Tensor, "B N p D"]]:
        """Return the least and the largest of each channel in every partition."""
        shape = (*states.shape[:2], self.last + 1, states.shape[-1])
        low, high = (states.new_zeros(shape, dtype=torch.float32) for _ in range(2))
        for block in spans(0, shape[-1], rows_per_block(self.members.numel(), states.device)):
            some = states[..., block].float()
            own = self.members.unsqueeze(-1).expand(some.shape)
            for table, extreme in ((low, "amin"), (high, "amax")):
                table[..., block] = table[..., block].scatter_reduce(
                    2, own, some, extreme, include_self=False
                )
        return low, high

    def softmax(self, logits: Float[Tensor, "B N S"]) -> Float[Tensor, "B N S"]:
        """Return the softmax among the rows of each partition."""
        table = logits.new_zeros(*logits.shape[:2], self.last + 1)
        largest = table.scatter_reduce(2, self.members, logits, "amax", include_self=False)
        # A GPU adds in varying order. In double precision this does not change the result.
        weights = (logits - largest.gather(2, self.members)).double().exp()
        sums = table.double().scatter_add(2, self.members, weights)
        return (weights / sums.gather(2, self.members)).to(logits)

    def ranks(self, scores: Float[Tensor, "B N S"]) -> Int[Tensor, "B N S"]:
        """Return each row's rank in its partition, from 0. Of equal scores the earlier is first."""
        best_first = scores.argsort(dim=-1, descending=True, stable=True)
        grouped = self.members.gather(-1, best_first).argsort(dim=-1, stable=True)
        order = best_first.gather(-1, grouped)
        members = self.members.gather(-1, order)
        places = torch.arange(members.shape[-1], device=members.device)
        ranks = places - torch.searchsorted(members, members)
        return torch.empty_like(order).scatter_(-1, order, ranks)


def partitions_of(observation: Observation, *, sinks: int, lag: int) -> Partitions:
    """Return the partitions of the text seen so far, of `lag` tokens each, after the sinks.

    >>> layer = Observation(queries=torch.zeros(1, 1, 1, 1), keys=torch.zeros(1, 1, 6, 1),
    ...                     values=torch.zeros(1, 1, 6, 1), seen=12,
    ...                     positions=torch.tensor([[[0, 1, 3, 8, 9, 11]]]))
    >>> parts = partitions_of(layer, sinks=1, lag=3)  # 1 to 3, 4 to 6, 7 to 9, and then 10, 11
    >>> print(parts.members, parts.judged)
    tensor([[[0, 1, 1, 2, 2, 3]]]) tensor([[[False,  True,  True, False, False, False]]])
    """
    complete = max(0, observation.seen - sinks) // lag
    behind_sinks = observation.positions.long() - sinks
    stretches = behind_sinks.div(lag, rounding_mode="floor").add(1).clamp(min=0)
    held = stretches.new_zeros(*stretches.shape[:2], complete + 2).scatter(2, stretches, 1)
    numbers = held[..., 1:].cumsum(-1)
    numbers = torch.cat([torch.zeros_like(held[..., :1]), numbers], dim=-1)
    members = numbers.gather(2, stretches)
    judged = (members > 0) & (members < numbers[..., complete, None])
    return Partitions(members=members, judged=judged, last=complete + 1)
