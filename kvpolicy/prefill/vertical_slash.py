"""Vertical-slash: the columns and diagonals that the last queries of a prompt attend to most."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from kvpolicy.options import count, natural
from kvpolicy.prefill.a_shape import AShape
from kvpolicy.prefill.blocks import blocks_of, offsets
from kvpolicy.prefill.last_attention import sums_of_last_attention
from kvpolicy_kernels import select


@attrs.frozen(kw_only=True)
class VerticalSlash:
    """Each head attends to the keys and the distances that its last queries attend to most.

    The attention of the last `queries` queries is summed over columns (keys) and over diagonals
    (distances). The blocks with the largest sums are chosen: as many as `columns` keys and
    `diagonals` distances need. The A-shape of `sinks` and `local` is always attended to, and takes
    no part in the sums.

    Jiang et al., MInference, NeurIPS 2024, https://arxiv.org/abs/2407.02490; the defaults are those
    of its code. That code ranks single columns and diagonals, and gathers the columns in a kernel
    of its own. Here blocks are ranked, so the options bound the work.

    >>> keys = torch.zeros(1, 1, 12, 4)
    >>> keys[:, :, 4] = 9.0
    >>> pattern = VerticalSlash(queries=2, columns=2, diagonals=0, sinks=0, local=1, block=2)
    >>> pattern.choose(torch.ones(1, 1, 12, 4), keys, scaling=1.0)[0, 0].int()
    tensor([[1, 0, 0, 0, 0, 0],
            [0, 1, 0, 0, 0, 0],
            [0, 0, 1, 0, 0, 0],
            [0, 0, 1, 1, 0, 0],
            [0, 0, 1, 0, 1, 0],
            [0, 0, 1, 0, 0, 1]], dtype=torch.int32)
    """

    queries: int = attrs.field(default=64, validator=count)
    columns: int = attrs.field(default=1000, validator=natural)
    diagonals: int = attrs.field(default=6096, validator=natural)
    sinks: int = attrs.field(default=30, validator=natural)
    local: int = attrs.field(default=100, validator=count)
    block: int = attrs.field(default=128, validator=count)

    @property
    def a_shape(self) -> AShape:
        """The A-shape that every query attends to."""
        return AShape(sinks=self.sinks, local=self.local, block=self.block)

    @property
    def dense_up_to(self) -> int:
        """The length of the longest prompt whose query-key pairs are all computed, in tokens."""
        columns, diagonals = (blocks_of(n, self.block) for n in (self.columns, self.diagonals))
        beside = max(columns, diagonals + self.a_shape.local_blocks + 1)
        return (self.a_shape.sink_blocks + beside) * self.block

    def choose(
        self,
        queries: Float[Tensor, "B H S D"],
        keys: Float[Tensor, "B N S D"],
        *,
        scaling: float,
        softcap: float | None = None,
    ) -> Bool[Tensor, "B H M M"]:
        """Return the A-shape, the best columns and the best diagonals of every head."""
        base = self.a_shape
        columns, diagonals = sums_of_last_attention(
            queries[:, :, -self.queries :], keys, base, scaling=scaling, softcap=softcap
        )
        columns[..., : base.sink_blocks] = -torch.inf
        diagonals[..., : base.local_blocks + 1] = -torch.inf
        ahead = offsets(columns.shape[-1], keys.device)
        vertical = _best(columns, blocks_of(self.columns, self.block))
        slash = _best(diagonals, blocks_of(self.diagonals, self.block))
        chosen = vertical[..., None, :] | slash[..., ahead.clamp(min=0)]
        return (ahead >= 0) & (base.choose(queries, keys, scaling=scaling) | chosen)


def _best(sums: Float32[Tensor, "B H M"], kept: int) -> Bool[Tensor, "B H M"]:
    """Mark the `kept` largest sums of every head. Of equal sums the first are marked."""
    room = torch.full(sums.shape[:2], kept, dtype=torch.long, device=sums.device)
    best: Int[Tensor, "B H K"] = select(sums, room, count=min(kept, sums.shape[-1]))
    return torch.zeros_like(sums, dtype=torch.bool).scatter_(-1, best, True)
