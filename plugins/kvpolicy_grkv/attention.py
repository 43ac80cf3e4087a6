"""The last queries of an observation, and their attention to the rows that are kept."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.observation.products import scaled_products
from kvpolicy.observation.softmax import softmax
from kvpolicy_kernels import Queries


def last_queries(observation: Observation, count: int) -> Queries:
    """Return the last `count` queries shown, each with the number of positions that it sees.

    >>> from kvpolicy.testing import observation
    >>> last_queries(observation(positions=9, window=4), 2).seen
    tensor([8, 9])
    """
    count = min(count, observation.window)
    rows = observation.queries[:, :, observation.window - count :]
    first = observation.length - count + 1
    return Queries(
        rows=rows,
        weights=rows.new_ones(len(rows), count, dtype=torch.float32),
        seen=torch.arange(first, first + count, device=rows.device),
        scaling=observation.scaling,
        softcap=observation.softcap,
        sinks=observation.sink_logits,
    )


def attention_to_kept(
    asked: Queries, kept: Float[Tensor, "B n K D"], places: Int[Tensor, "B n K"]
) -> Float32[Tensor, "B n M K"]:
    """Return the attention over the kept keys alone; 0 for fillers and for later rows.

    `places` are the rows of the kept keys before the eviction. M counts the queries of all query
    heads of a group, one head after another.

    >>> from kvpolicy.testing import observation
    >>> layer = observation(positions=9, window=4)
    >>> every = torch.arange(9).expand(1, 2, 9)
    >>> attention_to_kept(last_queries(layer, 2), layer.keys, every).shape
    torch.Size([1, 2, 4, 9])
    """
    logits = scaled_products(asked.rows, kept, asked.scaling).unflatten(1, (kept.shape[1], -1))
    if asked.softcap is not None:
        logits = asked.softcap * torch.tanh(logits / asked.softcap)
    hidden = (places[:, :, None] >= asked.seen[:, None])[:, :, None]
    # Not -inf: a query may see none of the kept rows, and the softmax would then be NaN.
    logits = logits.masked_fill(hidden, torch.finfo(logits.dtype).min)
    weights = softmax(logits.flatten(1, 2), asked.sinks).view_as(logits)
    return weights.masked_fill(hidden, 0).flatten(2, 3)
