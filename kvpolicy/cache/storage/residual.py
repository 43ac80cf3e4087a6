"""The most recent rows of every head, which a quantized storage keeps in full precision as well."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.cache.memory.saved import SAVED

BOTH = ("keys", "values")


@attrs.define(eq=False)
class Residual:
    """The last C rows of every head, right-aligned, as the model made them."""

    keys: Float[Tensor, "B N C D"] = attrs.field(metadata=SAVED)
    values: Float[Tensor, "B N C Dv"] = attrs.field(metadata=SAVED)

    @property
    def count(self) -> int:
        """C, the rows of a head."""
        return self.keys.shape[2]

    def of(self, name: str) -> Tensor:
        """Return "keys" or "values"."""
        rows: Tensor = getattr(self, name)
        return rows

    def select_rows(self, batch: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        for name in BOTH:
            rows = self.of(name)
            setattr(self, name, rows.index_select(0, batch.to(rows.device)))

    def forget_last(self, dropped: Int[Tensor, "B N"]) -> None:
        """Drop the last rows of each head, and the first ones of those that have more left."""
        left = max(0, self.count - int(dropped.max()))
        first = self.count - left - dropped.clamp(max=self.count - left)
        places = (first[..., None] + torch.arange(left, device="cpu"))[..., None]
        for name in BOTH:
            rows = self.of(name)
            index = places.expand(-1, -1, -1, rows.shape[-1]).to(rows.device)
            setattr(self, name, rows.gather(2, index))
