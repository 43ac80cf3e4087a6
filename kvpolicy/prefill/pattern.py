"""The interface of a prefill pattern.

Letters in the shapes: B batch, H query heads, N key/value heads (query head h reads key/value head
h // (H // N)), S tokens of a prompt, D head dim, M blocks of a prompt.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor


@runtime_checkable
class PrefillPattern(Protocol):
    """Chooses which blocks of a prompt's attention are computed.

    A block has `block` queries and `block` keys; the last may be smaller. A chosen block is
    computed whole, under the causal mask. Every query also attends to its own block.
    """

    @property
    def block(self) -> int:
        """The number of queries of a block, and of its keys."""

    @property
    def dense_up_to(self) -> int:
        """The length of the longest prompt that is read densely, in tokens."""

    def choose(
        self,
        queries: Float[Tensor, "B H S D"],
        keys: Float[Tensor, "B N S D"],
        *,
        scaling: float,
        softcap: float | None = None,
    ) -> Bool[Tensor, "b h M M"]:
        """Return for each block of queries the blocks of keys that it attends to.

        The prompt has no padding. `b` is B, or 1 if all sequences have the same blocks; `h` is H,
        or 1 if all heads have. Entries above the diagonal are ignored. The method must not make a
        GPU wait.
        """
