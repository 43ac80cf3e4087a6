"""Attention with learned sinks by PyTorch's fused kernels: no tensor of queries times keys.

A learned sink is one more logit in each head's softmax, and attends to nothing. Here it is one more
key: queries have a 1 in one more dimension, where only this key has a number. Its value is zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

PAIRS = 2**22
"""Query-key pairs of a mask that are made at once."""
FEW = 16
"""So many queries attend by plain products: to copy all keys would cost more."""
_ALIGNED = 8
"""Fused kernels need a head dimension that is a multiple of this."""


def attention_with_sinks(
    query: Float[Tensor, "B H Q D"],
    key: Float[Tensor, "B N S D"],
    value: Float[Tensor, "B N S Dv"],
    *,
    scaling: float,
    sinks: Float[Tensor, " H"] | None,
    visible: Bool[Tensor, "B S"] | None = None,
    window: int | None = None,
) -> Float[Tensor, "B H Q Dv"]:
    """Return the attention of the newest Q of S tokens, each to itself and what is before it.

    - `sinks`: a logit for each head; None: there is none.
    - `visible`: which keys may be seen; None: all.
    - `window`: how many tokens a query sees, itself included; None: all.

    A window's worth of keys, or a block of queries, is looked at a time. Memory grows with S, not
    with Q times S. Gradients flow to queries, keys, values and sinks.

    >>> rows = torch.zeros(1, 1, 2, 1)
    >>> attention_with_sinks(rows, rows, rows + 1, scaling=1.0, sinks=torch.zeros(1)).flatten()
    tensor([0.5000, 0.6667])
    """
    count, held = query.shape[2], key.shape[2]
    groups = query.shape[1] // key.shape[1]
    if count == held > FEW and visible is None and window is None:
        return _square(query, *_repeated(key, value, groups), scaling, sinks)
    attend = _by_products if count <= FEW else _fused
    outputs = []
    start = 0
    while start < count:
        first = 0 if window is None else max(0, held - count + start - window + 1)
        # The last key grows with the block: by at most all queries that are left.
        rows = max(FEW, PAIRS // (held - first)) if window is None else max(window, FEW)
        stop = min(count, start + rows)
        last = held - count + stop
        seen = _mask(query, start, stop, first, last, held, visible, window)
        keys, values = _repeated(key[:, :, first:last], value[:, :, first:last], groups)
        outputs.append(attend(query[:, :, start:stop], keys, values, scaling, sinks, seen))
        start = stop
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)


def _mask(
    query: Tensor,
    start: int,
    stop: int,
    first: int,
    last: int,
    held: int,
    visible: Tensor | None,
    window: int | None,
) -> Bool[Tensor, "b c q k"]:
    """Return which of keys `first` to `last` the queries `start` to `stop` see."""
    place = torch.arange(start, stop, device=query.device)[:, None] + held - query.shape[2]
    column = torch.arange(first, last, device=query.device)
    seen = column <= place
    if window is not None:
        seen &= column > place - window
    seen = seen[None, None]
    return seen if visible is None else seen & visible[:, None, None, first:last]


def _repeated(
    key: Float[Tensor, "B N S D"], value: Float[Tensor, "B N S Dv"], groups: int
) -> tuple[Float[Tensor, "B H S D"], Float[Tensor, "B H S Dv"]]:
    return key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)


def _by_products(
    query: Float[Tensor, "B H Q D"],
    key: Float[Tensor, "B H S D"],
    value: Float[Tensor, "B H S Dv"],
    scaling: float,
    sinks: Float[Tensor, " H"] | None,
    seen: Bool[Tensor, "b c Q S"],
) -> Float[Tensor, "B H Q Dv"]:
    logits = (query @ key.mT * scaling).float().masked_fill(~seen, -torch.inf)
    if sinks is not None:
        sink = sinks.float()[:, None, None].expand(*logits.shape[:3], 1)
        logits = torch.cat([logits, sink], -1)
    weights = logits.softmax(-1)[..., : key.shape[2]]
    return weights.to(value.dtype) @ value


def _fused(
    query: Float[Tensor, "B H Q D"],
    key: Float[Tensor, "B H S D"],
    value: Float[Tensor, "B H S Dv"],
    scaling: float,
    sinks: Float[Tensor, " H"] | None,
    seen: Bool[Tensor, "b c Q S"],
) -> Float[Tensor, "B H Q Dv"]:
    query, key, value, dims = _with_sink(query, key, value, scaling, sinks)
    if sinks is not None:
        seen = F.pad(seen, (1, 0), value=True)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
    return output[..., :dims]


def _square(
    query: Float[Tensor, "B H S D"],
    key: Float[Tensor, "B H S D"],
    value: Float[Tensor, "B H S Dv"],
    scaling: float,
    sinks: Float[Tensor, " H"] | None,
) -> Float[Tensor, "B H S Dv"]:
    """Attend causally without a mask: one more query stands in front, for the sink's own row."""
    query, key, value, dims = _with_sink(query, key, value, scaling, sinks)
    front = 0 if sinks is None else 1
    output = F.scaled_dot_product_attention(
        F.pad(query, (0, 0, front, 0)), key, value, is_causal=True, scale=scaling
    )
    return output[:, :, front:, :dims]


def _with_sink(
    query: Float[Tensor, "B H Q D"],
    key: Float[Tensor, "B H S D"],
    value: Float[Tensor, "B H S Dv"],
    scaling: float,
    sinks: Float[Tensor, " H"] | None,
) -> tuple[Float[Tensor, "B H Q E"], Float[Tensor, "B H T E"], Float[Tensor, "B H T E"], int]:
    """Return queries, keys and values of one width, the sink's key in front; and the old width."""
    dim, dims = query.shape[-1], value.shape[-1]
    front = 0 if sinks is None else 1
    width = -(-max(dim + front, dims) // _ALIGNED) * _ALIGNED
    query = F.pad(query, (0, width - dim))
    key = F.pad(key, (0, width - dim, front, 0))
    value = F.pad(value, (0, width - dims, front, 0))
    if sinks is not None:
        query[..., dim] = 1
        key[:, :, 0, dim] = (sinks / scaling).to(key.dtype)
    return query, key, value, dims
