"""Smooth by chunks: the mean over the heads, then over chunks of neighbouring tokens."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.options import count


@attrs.frozen(kw_only=True)
class ChunkSmoother:
    """Gives every position the mean score of its chunk, over tokens and heads.

    A chunk has `length` tokens of the text, counted from its first token. The last chunk may be
    shorter, and so may a chunk that was evicted from. The window is in no chunk: its scores are
    means over the heads. The temporal part averages over the window's queries.

    Liu et al., NeurIPS 2025, https://arxiv.org/abs/2502.00299.

    >>> from kvpolicy import Observation
    >>> layer = Observation(queries=torch.ones(1, 1, 1, 1), keys=torch.ones(1, 1, 6, 1),
    ...                     values=torch.ones(1, 1, 6, 1))
    >>> scores = torch.tensor([[[3.0, 1.0, 4.0, 0.0, 7.0, 9.0]]])
    >>> ChunkSmoother(length=2).spatial(scores, layer)
    tensor([[[2., 2., 2., 2., 7., 9.]]])
    """

    across_heads: ClassVar[bool] = True
    position_bias: ClassVar[bool] = True

    length: int = attrs.field(default=10, validator=count)

    def weights(self, window: int) -> Float[Tensor, " W"]:
        """Return 1/W for every query."""
        return torch.full((window,), 1 / window, dtype=torch.float32, device="cpu")

    def temporal(self, values: Float[Tensor, "*lead W S"]) -> Float[Tensor, "*lead S"]:
        """Average over the window's queries."""
        return values.mean(-2)

    def spatial(
        self, scores: Float[Tensor, "B H S"], observation: Observation
    ) -> Float[Tensor, "B H S"]:
        """Average over heads, and over chunks for positions before the window."""
        past = observation.length - observation.window
        mean = observation.of_all_heads(scores).mean(1)
        chunks = observation.positions[:, 0, :past].long() // self.length
        mean = torch.cat([_means(mean[:, :past], chunks), mean[:, past:]], dim=-1)
        return mean[:, None].expand(scores.shape)


def _means(scores: Float[Tensor, "B P"], chunks: Int[Tensor, "B P"]) -> Float[Tensor, "B P"]:
    """Return for each score the mean of its chunk. Chunk numbers must ascend."""
    chunks = chunks.contiguous()
    first = torch.searchsorted(chunks, chunks)
    behind = torch.searchsorted(chunks, chunks, right=True)
    # In double precision, differences of running sums keep the smallest scores exact enough.
    sums = F.pad(scores.double().cumsum(-1), (1, 0))
    return ((sums.gather(-1, behind) - sums.gather(-1, first)) / (behind - first)).to(scores)
