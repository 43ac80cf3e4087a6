"""The A-shape: the first keys of the prompt, and the keys around each query."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kvpolicy.options import count, natural
from kvpolicy.prefill.blocks import blocks_of, offsets


@attrs.frozen(kw_only=True)
class AShape:
    """Each query attends to the first `sinks` keys and to the last `local` ones up to its own.

    Both are widened to whole blocks, and are the same for all heads and prompts. Jiang et al.,
    MInference, NeurIPS 2024, https://arxiv.org/abs/2407.02490; the defaults are those of its code.

    >>> pattern = AShape(sinks=1, local=3, block=2)
    >>> pattern.choose(torch.zeros(1, 1, 9, 8), torch.zeros(1, 1, 9, 8), scaling=1.0)[0, 0].int()
    tensor([[1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 0, 1, 1, 0],
            [1, 0, 0, 1, 1]], dtype=torch.int32)
    """

    sinks: int = attrs.field(default=128, validator=natural)
    local: int = attrs.field(default=3968, validator=count)
    block: int = attrs.field(default=128, validator=count)

    @property
    def sink_blocks(self) -> int:
        """The number of blocks of keys that every query attends to."""
        return blocks_of(self.sinks, self.block)

    @property
    def local_blocks(self) -> int:
        """The number of blocks of keys before its own that a block of queries attends to.

        The first query of a block attends to `local - 1` keys before its own.
        """
        return blocks_of(self.local - 1, self.block)

    @property
    def dense_up_to(self) -> int:
        """The length of the longest prompt whose query-key pairs are all computed, in tokens."""
        return (self.sink_blocks + self.local_blocks + 1) * self.block

    def choose(
        self,
        queries: Float[Tensor, "B H S D"],
        keys: Float[Tensor, "B N S D"],
        *,
        scaling: float,
        softcap: float | None = None,
    ) -> Bool[Tensor, "1 1 M M"]:
        """Return the sink blocks and the local blocks. They do not depend on queries and keys."""
        ahead = offsets(blocks_of(keys.shape[2], self.block), keys.device)
        first = torch.arange(len(ahead), device=keys.device) < self.sink_blocks
        return ((ahead >= 0) & (first | (ahead <= self.local_blocks)))[None, None]
