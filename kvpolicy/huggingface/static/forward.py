"""One layer in one prompt of a static cache."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from kvpolicy.huggingface.forward import Forward
from kvpolicy.observation.logits import Logits


class StaticForward(Forward):
    """Reads what is in doubt when the prompt ends: a step that is replayed reads nothing."""

    def observe(self, module: nn.Module, query: Float[Tensor, "B H Q D"], logits: Logits) -> None:
        """Take note of the queries that just attended, and evict where the policy says so."""
        super().observe(module, query, logits)
        if self.layer == self.session.num_layers - 1:
            self.session.guard.settle()
