"""Causal attention with soft caps and learned sinks: no tensor of all queries times all keys.

Without a soft cap PyTorch's fused kernels compute it. A learned sink is one more logit in each
head's softmax, and attends to nothing. Here it is one more key: queries have a 1 in one more
dimension, where only this key has a number. Its value is zero.

No fused kernel has a soft cap on every device. There a block of queries is multiplied with the keys
that it sees, and the softmax is taken of the products.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kvpolicy.observation.logits import Logits

PAIRS = 2**22
"""So many query-key pairs are looked at once: in a mask, or in the products of all heads."""
FEW = 16
"""So many queries attend by products: for a fused kernel all keys would be copied."""
_ALIGNED = 8
"""Fused kernels need a head dimension that is a multiple of this."""


def causal_attention(
    query: Float[Tensor, "B H Q D"],
    key: Float[Tensor, "B N S D"],
    value: Float[Tensor, "B N S Dv"],
    logits: Logits,
    *,
    visible: Bool[Tensor, "B S"] | None = None,
    window: int | None = None,
) -> Float[Tensor, "B H Q Dv"]:
    """Return the attention of the newest Q of S tokens, each to itself and what is before it.

    - `logits`: the scale, soft cap and learned sinks; it has no position bias.
    - `visible`: which keys may be seen; None: all.
    - `window`: how many tokens a query sees, itself included; None: all.

    Memory grows with S, not with Q times S: a mask, or with a soft cap the products of all heads,
    has at most `PAIRS` numbers at a time, or those of `FEW` queries. Products are rounded to the
    dtype of the queries and the softmax is in float32, as in transformers' eager attention.
    Gradients flow to queries, keys, values and sinks.

    >>> rows = torch.zeros(1, 1, 2, 1)
    >>> sink = Logits(scaling=1.0, sinks=torch.zeros(1))
    >>> causal_attention(rows, rows, rows + 1, sink).flatten()
    tensor([0.5000, 0.6667])
    """
    sight = _Sight(query.shape[2], key.shape[2], visible, window)
    is_square = sight.queries == sight.held > FEW and visible is None and window is None
    if is_square and logits.softcap is None:
        return _square(query, key, value, logits)
    attend: Callable[..., Tensor] = _fused
    rows = sight.rows(1)
    if logits.softcap is not None or sight.queries <= FEW:
        rows = sight.rows(query.shape[0] * query.shape[1])
        attend = _recomputed if torch.is_grad_enabled() else _by_products
    # The largest block comes first, and no output lies between what it frees: the next fits there.
    output = query.new_empty(*query.shape[:3], value.shape[3])
    for start in reversed(range(0, sight.queries, rows)):
        stop = min(start + rows, sight.queries)
        keys = sight.keys(start, stop)
        block = query[:, :, start:stop], key[:, :, keys], value[:, :, keys]
        mask = partial(sight.mask, start, stop, query.device)
        output[:, :, start:stop] = attend(*block, logits, mask)
    return output


class _Sight(NamedTuple):
    """Which of `held` keys each of the `queries` newest tokens sees."""

    queries: int
    held: int
    visible: Bool[Tensor, "B S"] | None
    window: int | None

    def rows(self, heads: int) -> int:
        """Return how many queries make a block whose products have `PAIRS` numbers at most."""
        if self.window is None:
            return max(FEW, PAIRS // (heads * self.held))
        # A block as long as a window sees two windows.
        reach = min(2 * self.window, self.held)
        return max(FEW, min(self.window, PAIRS // (heads * reach)))

    def keys(self, start: int, stop: int) -> slice:
        """Return the keys that one of the queries `start` to `stop` can see."""
        older = self.held - self.queries
        first = 0 if self.window is None else max(0, older + start - self.window + 1)
        return slice(first, older + stop)

    def mask(self, start: int, stop: int, device: torch.device) -> Bool[Tensor, "b 1 q k"]:
        """Return which of these keys each of the queries sees."""
        keys = self.keys(start, stop)
        place = torch.arange(start, stop, device=device)[:, None] + self.held - self.queries
        column = torch.arange(keys.start, keys.stop, device=device)
        seen = column <= place
        if self.window is not None:
            seen &= column > place - self.window
        seen = seen[None, None]
        return seen if self.visible is None else seen & self.visible[:, None, None, keys]


def _recomputed(*block: Any) -> Tensor:
    """Attend by products, and compute them again for gradients: none is kept."""
    output: Tensor = checkpoint(_by_products, *block, use_reentrant=False, preserve_rng_state=False)
    return output


def _by_products(
    query: Float[Tensor, "B H q D"],
    key: Float[Tensor, "B N k D"],
    value: Float[Tensor, "B N k Dv"],
    logits: Logits,
    mask: Callable[[], Bool[Tensor, "b 1 q k"]],
) -> Float[Tensor, "B H q Dv"]:
    batch, heads, count, dim = query.shape
    kv_heads, held = key.shape[1:3]
    # The queries of a group are rows of one product, so no key is copied.
    grouped = query.reshape(batch, kv_heads, -1, dim)
    products = (grouped @ key.mT).view(batch, heads, count, held) * logits.scaling
    if logits.softcap is not None:
        products = (products / logits.softcap).tanh() * logits.softcap
    # Not -inf: a padding query may see nothing. Its output is never used, but must not be NaN.
    products = products.float().masked_fill(~mask(), torch.finfo(torch.float32).min)
    if logits.sinks is not None:
        sink = logits.sinks.float()[:, None, None].expand(batch, heads, count, 1)
        products = torch.cat([products, sink], -1)
    weights = products.softmax(-1)[..., :held].to(value.dtype)
    output = weights.reshape(batch, kv_heads, -1, held) @ value
    return output.view(batch, heads, count, -1)


def _fused(
    query: Float[Tensor, "B H q D"],
    key: Float[Tensor, "B N k D"],
    value: Float[Tensor, "B N k Dv"],
    logits: Logits,
    mask: Callable[[], Bool[Tensor, "b 1 q k"]],
) -> Float[Tensor, "B H q Dv"]:
    query, key, value, dims = _with_sink(query, key, value, logits)
    seen = mask() if logits.sinks is None else F.pad(mask(), (1, 0), value=True)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=logits.scaling)
    return output[..., :dims]


def _square(
    query: Float[Tensor, "B H S D"],
    key: Float[Tensor, "B N S D"],
    value: Float[Tensor, "B N S Dv"],
    logits: Logits,
) -> Float[Tensor, "B H S Dv"]:
    """Attend causally without a mask: one more query stands in front, for the sink's own row."""
    query, key, value, dims = _with_sink(query, key, value, logits)
    front = 0 if logits.sinks is None else 1
    output = F.scaled_dot_product_attention(
        F.pad(query, (0, 0, front, 0)), key, value, is_causal=True, scale=logits.scaling
    )
    return output[:, :, front:, :dims]


def _with_sink(
    query: Float[Tensor, "B H Q D"],
    key: Float[Tensor, "B N S D"],
    value: Float[Tensor, "B N S Dv"],
    logits: Logits,
) -> tuple[Float[Tensor, "B H Q E"], Float[Tensor, "B H T E"], Float[Tensor, "B H T E"], int]:
    """Return queries, and keys and values for each of their heads, the sink's key in front.

    All have one width. The old width of values comes last.
    """
    groups, sinks = query.shape[1] // key.shape[1], logits.sinks
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    dim, dims = query.shape[-1], value.shape[-1]
    front = 0 if sinks is None else 1
    width = -(-max(dim + front, dims) // _ALIGNED) * _ALIGNED
    query = F.pad(query, (0, width - dim))
    key = F.pad(key, (0, width - dim, front, 0))
    value = F.pad(value, (0, width - dims, front, 0))
    if sinks is not None:
        query[..., dim] = 1
        key[:, :, 0, dim] = (sinks / logits.scaling).to(key.dtype)
    return query, key, value, dims
