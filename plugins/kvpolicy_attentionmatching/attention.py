"""The last queries of an observation: their attention to all rows, as shares of its mass."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.observation.products import scaled_products


def logits_of(
    observation: Observation,
    keys: Float[Tensor, "B n S D"],
    heads: slice,
    count: int,
    bias: Float[Tensor, "B n S"] | None,
) -> Float32[Tensor, "B n M S"]:
    """Return the logits of the last `count` queries of each query head; -inf of later rows.

    `heads` are the key/value heads of `keys`. M counts the queries of all query heads of a group,
    one head after another.

    >>> from kvpolicy.testing import observation
    >>> layer = observation(positions=9, window=4)
    >>> logits_of(layer, layer.keys, slice(0, 2), 2, None).shape
    torch.Size([1, 2, 4, 9])
    """
    groups = observation.queries.shape[1] // observation.keys.shape[1]
    count = min(count, observation.window)
    own = slice(heads.start * groups, heads.stop * groups)
    queries = observation.queries[:, own, observation.window - count :]
    found = scaled_products(queries, keys, observation.scaling).unflatten(1, (keys.shape[1], -1))
    if observation.softcap is not None:
        found = observation.softcap * torch.tanh(found / observation.softcap)
    if bias is not None:
        found = found + bias[:, :, None, None]
    row = torch.arange(keys.shape[2], device=keys.device)
    last = torch.arange(keys.shape[2] - count, keys.shape[2], device=keys.device)
    visible: Tensor = found.masked_fill(row > last[:, None], -torch.inf)
    return visible.flatten(2, 3)


def sink_shares(
    observation: Observation, mass: Float32[Tensor, "B n M"], heads: slice
) -> Float32[Tensor, "B n M"]:
    """Return exp(sink) of each query's learned sink, as a share of its mass exp(`mass`).

    Zeros of a model without learned sinks.
    """
    if observation.sink_logits is None:
        return torch.zeros_like(mass)
    groups = observation.queries.shape[1] // observation.keys.shape[1]
    sinks = observation.sink_logits[heads.start * groups : heads.stop * groups].float()
    by_query = sinks.view(-1, groups).repeat_interleave(mass.shape[2] // groups, 1)
    return (by_query - mass).exp()
