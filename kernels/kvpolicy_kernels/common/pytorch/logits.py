"""Attention logits of a window of queries, in blocks of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.common.pytorch.blocks import LOGITS_BYTES, rows_per_block, spans
from kvpolicy_kernels.common.pytorch.products import transposed_product


class QueryBlock(NamedTuple):
    """Logits of a few queries of one sequence. The caller may overwrite them."""

    batch: int
    kv_head: int | None
    """None if the block spans all heads."""
    heads: slice
    window: slice
    logits: Float32[Tensor, "h w V"]
    """V is the number of positions that the last query sees; -inf where an earlier one does not."""


def query_blocks(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    *,
    scaling: float,
    softcap: float | None,
    together: bool = False,
    causal: bool = True,
) -> Iterator[QueryBlock]:
    """Yield the logits of all queries, block by block.

    A block holds the whole windows of several query heads of a group, or, if these are too large, a
    part of one head's window. The heads of a group share one matrix product: it reads the keys
    once and has enough rows to be fast.

    `together`: if there is one query (W = 1) and the logits of a sequence are small, yield those of
    all its heads at once. A loop over heads would take longer than the products.

    Not `causal`: every query sees all positions.

    The logits of a block are valid until the next block.
    """
    batch, heads, window, _ = queries.shape
    kv_heads, positions = keys.shape[1:3]
    if together and are_single(queries, keys):
        yield from _single_queries(queries, keys, scaling, softcap)
        return
    group = heads // kv_heads
    rows = max(1, LOGITS_BYTES // (4 * positions))
    window_step = min(window, rows)
    head_step = min(group, max(1, rows // window))
    memory = torch.empty(
        head_step * window_step * positions, dtype=torch.float32, device=keys.device
    )
    for b, n in product(range(batch), range(kv_heads)):
        for h in spans(n * group, (n + 1) * group, head_step):
            # The longest rows come first: memory that they leave is large enough for the others.
            for w in reversed(list(spans(0, window, window_step))):
                block = queries[b, h, w].float() * scaling
                visible = positions - window + w.stop if causal else positions
                logits = _logits(block, keys[b, n, :visible], softcap, memory)
                yield QueryBlock(b, n, h, w, _without_later(logits) if causal else logits)


def are_single(queries: Float[Tensor, "B H W D"], keys: Float[Tensor, "B N S D"]) -> bool:
    """Whether there is one query, and the logits of a sequence are small.

    They and the keys in float32 must each fit into LOGITS_BYTES.
    """
    _, kv_heads, positions, dim = keys.shape
    copied = 0 if keys.dtype == torch.float32 else kv_heads * dim
    is_small = 4 * positions * max(queries.shape[1], copied) <= LOGITS_BYTES
    return queries.shape[2] == 1 and len(queries) > 0 and is_small


def exponentials(
    logits: Float32[Tensor, "*lead w V"], sinks: Float[Tensor, "*lead 1"] | None = None
) -> tuple[Float32[Tensor, "*lead w"], Float32[Tensor, "*lead w"]]:
    """Replace the logits x of each row by exp(x - base); return `base` and `mass`, their sum.

    A learned sink is one more logit of its row. It adds to the mass only.
    """
    base = logits.amax(-1)
    if sinks is not None:
        base = torch.maximum(base, sinks)
    mass = logits.sub_(base[..., None]).exp_().sum(-1)
    if sinks is not None:
        mass += (sinks - base).exp_()
    return base, mass


def _logits(
    queries: Float32[Tensor, "h w D"],
    keys: Float[Tensor, "V D"],
    softcap: float | None,
    memory: Float32[Tensor, " size"],
) -> Float32[Tensor, "h w V"]:
    heads, window, dim = queries.shape
    visible = keys.shape[0]
    flat = memory[: heads * window * visible].view(heads * window, visible)
    for s in spans(0, visible, rows_per_block(dim, keys.device)):
        flat[:, s] = transposed_product(queries.reshape(-1, dim), keys[s].float())
    if softcap is not None:
        flat.div_(softcap).tanh_().mul_(softcap)
    return flat.view(heads, window, visible)


def _without_later(logits: Float32[Tensor, "h w V"]) -> Float32[Tensor, "h w V"]:
    """Mask what comes after each query; the last one sees all V positions."""
    window, visible = logits.shape[1:]
    if window > 1:
        later = torch.ones(window, window, dtype=torch.bool, device=logits.device).triu_(1)
        logits[..., visible - window :].masked_fill_(later, -torch.inf)
    return logits


def _single_queries(
    queries: Float[Tensor, "B H 1 D"],
    keys: Float[Tensor, "B N S D"],
    scaling: float,
    softcap: float | None,
) -> Iterator[QueryBlock]:
    """Yield one block for each sequence, so that none depends on the rest of the batch."""
    heads, kv_heads = queries.shape[1], keys.shape[1]
    everything = slice(0, heads)
    for b in range(queries.shape[0]):
        rows = queries[b].reshape(kv_heads, heads // kv_heads, -1).float() * scaling
        logits = torch.bmm(rows, keys[b].float().mT)
        if softcap is not None:
            logits.div_(softcap).tanh_().mul_(softcap)
        yield QueryBlock(b, None, everything, slice(0, 1), logits.view(heads, 1, -1))
