"""Allocate by a table of head importance, the same for every prompt."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.errors import InvalidValueError
from kvpolicy.observation.observation import Observation
from kvpolicy.options import as_float, at_least, natural, one_of, positive
from kvpolicy.pipeline.capabilities import ModelFacts
from kvpolicy_headkv.table import Table, as_table, importances


@attrs.frozen(kw_only=True)
class HeadTableAllocator:
    """Distributes a part of the budget of all heads by a table of their importance.

    `importance` has a row for each layer that evicts, and in it a number for each query head or
    each key/value head. Every head keeps the last `window` positions. Of the others, base on
    average, base // `beta` are in a pool. Heads get shares of the pool by importance ** `temp`.
    `rounding` "down" stays within the budget; "nearest" is that of the authors.

    Fu et al., ICLR 2025, https://openreview.net/forum?id=FJFVmeXusW.

    >>> from kvpolicy.testing import observation
    >>> allocator = HeadTableAllocator(importance=[[1, 3], [0, 0]], beta=2, window=0)
    >>> scores = torch.zeros(1, 2, 32)
    >>> [allocator.allocate(scores, observation(layer=layer, num_layers=2), 10).tolist()
    ...  for layer in range(2)]
    [[[10, 20]], [[5, 5]]]
    """

    uneven: ClassVar[bool] = True
    position_bias: ClassVar[bool] = True

    importance: Table = attrs.field(converter=as_table, validator=importances, repr=False)
    beta: float = attrs.field(default=1.01, converter=as_float, validator=[positive, at_least(1)])
    temp: float = attrs.field(default=1.0, converter=as_float, validator=positive)
    window: int = attrs.field(default=32, validator=natural)
    rounding: Literal["down", "nearest"] = attrs.field(
        default="down", validator=one_of("down", "nearest")
    )

    def check_model(self, model: ModelFacts) -> None:
        """Raise InvalidValueError if the shape of the table does not fit the model."""
        layers, width = len(self.importance), len(self.importance[0])
        if layers != model.layers or width not in (model.heads, model.kv_heads):
            raise InvalidValueError(
                f"'importance' is a table of {layers} layers x {width} heads, but {model.name} has "
                f"{model.layers} layers that evict, with {model.heads} query heads and "
                f"{model.kv_heads} key/value heads. Give {model.layers} rows of {model.heads} or "
                f"{model.kv_heads} numbers."
            )

    def allocate(
        self, scores: Float[Tensor, "B N S"], observation: Observation, budget: int
    ) -> Int[Tensor, "B N"]:
        """Return each head's count. It does not depend on the scores."""
        batch, heads, length = scores.shape
        window = min(self.window, budget)
        base = budget - window
        pool = int(base // self.beta)
        counts = [
            min(length, window + self._rounded(base - pool + share * pool))
            for share in self._shares(observation.layer, heads)
        ]
        return torch.tensor(counts, device="cpu").expand(batch, heads)

    def _rounded(self, count: float) -> int:
        return round(count) if self.rounding == "nearest" else math.floor(count + 1e-9)

    def _shares(self, layer: int, heads: int) -> list[float]:
        """Return each key/value head's share of the pool. The mean share of all heads is 1."""
        largest = max(map(max, self.importance))
        powers = [[(each / largest) ** self.temp for each in row] for row in self.importance]
        average = sum(map(sum, powers)) / (len(powers) * len(powers[0]))
        group, rest = divmod(len(powers[0]), heads)
        if rest or layer >= len(powers):
            raise InvalidValueError(
                f"'importance' is a table of {len(powers)} layers x {len(powers[0])} heads, which "
                f"does not fit layer {layer} with {heads} key/value heads."
            )
        row = powers[layer]
        means = [sum(row[first : first + group]) / group for first in range(0, len(row), group)]
        return [mean / average for mean in means]
