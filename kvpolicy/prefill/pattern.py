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
    """Chooses the blocks of a prompt's attention that are computed.

    A block is `block` queries times `block` keys; the last may be shorter. One that is chosen is
    attended to whole, under the causal mask, and every query attends to its own block besides.
    """

    @property
    def block(self) -> int:
        """Queries, and keys, of a block."""

    @property
    def dense_up_to(self) -> int:
        """Tokens of the longest prompt that is surely not worth a pattern: it is read densely."""

    def choose(
        self,
        queries: Float[Tensor, "B H S D"],
        keys: Float[Tensor, "B N S D"],
        *,
        scaling: float,
        softcap: float | None = None,
    ) -> Bool[Tensor, "b h M M"]:
        """Return for each block of queries the blocks of keys that it attends to.

        The prompt has no padding. `b` and `h` may be 1 where the choice is the same for all; what
        lies above the diagonal does not matter. A GPU is not to wait.
        """
