"""Score by attention, times the size of the head's largest value."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.options import count
from kvpolicy_kernels import rows_per_block, spans


@attrs.frozen(kw_only=True)
class LargestValueScorer:
    """Scores a position by the window's attention to it, times the head's largest ||v_j||_1.

    The factor is the same for all positions of a head. It makes heads and layers comparable: a
    head's output changes by at most twice this much if positions with this attention are evicted.
    The maximum is over the positions before the window, or over all if there are none.

    Shen et al., Findings of EMNLP 2025, https://arxiv.org/abs/2509.09754.

    >>> from kvpolicy import Observation
    >>> layer = Observation(queries=torch.zeros(1, 1, 1, 1), keys=torch.zeros(1, 1, 4, 1),
    ...                     values=torch.tensor([[[[1.0], [-2.0], [0.0], [9.0]]]]))
    >>> LargestValueScorer(window=1).score(layer, lambda attention: attention.mean(-2))
    tensor([[[0.5000, 0.5000, 0.5000, 0.5000]]])
    """

    position_bias: ClassVar[bool] = True

    window: int = attrs.field(default=32, validator=count)

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return the attention of each query head, times the largest value that it reads."""
        attention = observation.folded_attention(reduce)
        past = observation.length - observation.window
        largest = _largest(observation.values[:, :, : past or None])
        by_group = attention.unflatten(1, (largest.shape[1], -1))
        return (by_group * largest[:, :, None, None]).flatten(1, 2)


def _largest(values: Float[Tensor, "B N S Dv"]) -> Float32[Tensor, "B N"]:
    """Return the largest ||v||_1 of each head."""
    # A GPU reads half precision and adds in float32, without a copy.
    on_gpu = values.device.type == "cuda"
    rows = values.shape[2] if on_gpu else rows_per_block(values[:, :, 0].numel(), values.device)
    blocks = spans(0, values.shape[2], rows)
    sizes = [_sizes(values[:, :, block]).amax(-1) for block in blocks]
    return sizes[0] if len(sizes) == 1 else torch.stack(sizes).amax(0)


def _sizes(values: Float[Tensor, "B N s Dv"]) -> Float32[Tensor, "B N s"]:
    """Return ||v||_1 of each value."""
    precision = torch.promote_types(values.dtype, torch.float32)
    sizes: Tensor = torch.linalg.vector_norm(values, ord=1, dim=-1, dtype=precision)
    return sizes.float()
