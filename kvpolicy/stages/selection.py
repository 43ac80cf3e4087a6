"""Select: pick the positions to keep, within the budget."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy_kernels import protect_scores, select, unselected


@attrs.frozen(kw_only=True, eq=False)
class Selection:
    """The kept rows of a layer, in ascending order for each head.

    The first `lengths` indices of a head are valid. The others hold S, which is no row.
    """

    indices: Int[Tensor, "B N K"]
    lengths: Int[Tensor, "B N"]

    @property
    def is_full(self) -> bool:
        """Whether all K indices of every head are known to be valid, without a wait for a GPU."""
        return self.lengths.device.type == "cpu" and bool(
            (self.lengths == self.indices.shape[-1]).all()
        )

    def rows(self, length: int) -> Int[Tensor, "B N K"]:
        """Return indices that all are rows among `length`; fillers become the last row."""
        return self.indices if self.is_full else self.indices.clamp(max=length - 1)

    def evicted(self, length: int) -> Int[Tensor, "B N E"]:
        """Return those of `length` rows that are not kept, in ascending order.

        A head that evicts fewer rows than another has `length` in its last places.

        >>> Selection(indices=torch.tensor([[[1, 2]]]), lengths=torch.tensor([[2]])).evicted(4)
        tensor([[[0, 3]]])
        """
        fewest = int(self.lengths.min()) if self.lengths.numel() else length
        return unselected(self.indices, length, length - fewest)

    @classmethod
    def everything(cls, observation: Observation) -> Selection:
        """Return a selection of every row.

        >>> from kvpolicy.testing import observation
        >>> Selection.everything(observation(positions=3)).indices[0, 0]
        tensor([0, 1, 2])
        """
        shape = observation.keys.shape[:3]
        rows = torch.arange(observation.length, device=observation.keys.device)
        lengths = torch.full(shape[:2], observation.length, dtype=torch.long, device="cpu")
        return cls(indices=rows.expand(shape), lengths=lengths)


@runtime_checkable
class Selector(Protocol):
    """Picks the positions to keep by their scores."""

    def select(self, scores: Float[Tensor, "B N S"], budgets: Int[Tensor, "B N"]) -> Selection:
        """Return as many rows for each head as its budget says.

        A score of +inf marks a protected position (an attention sink or a recent token).
        Protected positions are kept before all others.
        """
        ...


@attrs.frozen(kw_only=True)
class TopKSelector:
    """Keeps the positions with the highest scores. Of equal scores it keeps the earlier one."""

    capturable: ClassVar[bool] = True

    def select(self, scores: Float[Tensor, "B N S"], budgets: Int[Tensor, "B N"]) -> Selection:
        """Return the `budgets` best rows of each head."""
        return Selection(indices=select(scores, budgets), lengths=budgets)


def protect(
    scores: Float[Tensor, "B N S"], observation: Observation, *, sinks: int, recent: int
) -> Float[Tensor, "B N S"]:
    """Set the scores of the first `sinks` and the last `recent` tokens to +inf."""
    if not (sinks or recent):
        return scores
    # Where all heads keep a position or none does, scores have one head.
    positions = observation.positions[:, : scores.shape[1]]
    since = observation.seen - recent if recent else None
    return protect_scores(scores, positions, before=sinks, since=since)
