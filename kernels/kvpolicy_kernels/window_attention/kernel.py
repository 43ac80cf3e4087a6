"""The Triton kernels: the logsumexp of each query, then the attention folded over the queries."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.common.triton.logits import capped, load_rows, products_by_parts
from kvpolicy_kernels.window_attention.reference import WindowAttention
from kvpolicy_kernels.window_attention.sums import log2_sums, plan_of

LN_2 = tl.constexpr(math.log(2))


def unsupported(queries: Tensor, keys: Tensor, *vectors: Tensor) -> str | None:
    """Return why the kernels cannot take these queries, keys, weights, sinks; None if they can."""
    return launch.refusal(queries, keys, *(vector[..., None] for vector in vectors))


@triton.jit
def _to_base_e(totals, logsums, valid, r, W, BLOCK_W: tl.constexpr, BLOCK_G: tl.constexpr):
    """Store the logarithms of all queries. It comes last, when the registers are free."""
    for tile in range(0, W, BLOCK_W):
        w = tile + r // BLOCK_G
        inside = valid & (w < W)
        tl.store(logsums + w, tl.load(totals + w, mask=inside, other=0) * LN_2, mask=inside)


@triton.jit
def _fold_kernel(
    queries, keys, weights, totals, attention, logsums,
    N, G, W, S, PAST, GROUP_BLOCKS, scale, softcap,
    queries_b, queries_h, queries_w, queries_d,
    keys_b, keys_n, keys_s, keys_d, weights_w,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_S: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, UP: tl.constexpr, OWN_WEIGHTS: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * BLOCK_S
    place = tl.program_id(1).to(tl.int64)
    b, n = place // GROUP_BLOCKS // N, place // GROUP_BLOCKS % N
    s = start + tl.arange(0, BLOCK_S)
    key_rows = keys + b * keys_b + n * keys_n + s * keys_s
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    if CHANNELS == BLOCK_D:
        seen = load_rows(key_rows, s < S, d, keys_d, D, UP)
    r = tl.arange(0, BLOCK_W * BLOCK_G)
    g = place % GROUP_BLOCKS * BLOCK_G + r % BLOCK_G
    h = n * G + g
    folded = tl.zeros([BLOCK_W * BLOCK_G, BLOCK_S], tl.float32)
    # Queries of earlier tiles see no position of the block.
    first = tl.maximum(start - PAST, 0) // BLOCK_W * BLOCK_W
    for tile in range(first, W, BLOCK_W):
        w = tile + r // BLOCK_G
        valid = (g < G) & (w < W)
        rows = queries + b * queries_b + h * queries_h + w * queries_w
        total = tl.load(totals + (b * N * G + h) * W + w, mask=valid, other=0)
        if CHANNELS == BLOCK_D:
            block = load_rows(rows, valid, d, queries_d, D, UP)
            product = tl.dot(block, tl.trans(seen), input_precision=PRECISION)
        else:
            product = products_by_parts(
                rows, valid, queries_d, key_rows, s < S, keys_d, D, CHANNELS, PRECISION, UP
            )
        logits = capped(product, scale, softcap)
        sees = valid[:, None] & (s[None, :] <= (PAST + w)[:, None])
        # Mask before the exponential: a large logit that is not seen would overflow.
        share = tl.exp2(tl.where(sees, logits - total[:, None], float("-inf")))
        if weights is None:
            folded += share
        else:
            if OWN_WEIGHTS:
                weight = tl.load(weights + (b * N * G + h) * W + w, mask=valid, other=0)
            else:
                weight = tl.load(weights + w * weights_w, mask=w < W, other=0).to(tl.float32)
            folded += share * weight[:, None]
    by_head = tl.sum(tl.reshape(folded, [BLOCK_W, BLOCK_G, BLOCK_S]), 0)
    own = place % GROUP_BLOCKS * BLOCK_G + tl.arange(0, BLOCK_G)
    target = attention + (b * N * G + n * G + own) * S
    tl.store(target[:, None] + s[None, :], by_head, mask=(own < G)[:, None] & (s < S)[None, :])
    if start == 0:
        # This block sees all queries.
        of_head = (b * N * G + h) * W
        _to_base_e(totals + of_head, logsums + of_head, g < G, r, W, BLOCK_W, BLOCK_G)


def window_attention(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    weights: Float[Tensor, " W"] | Float[Tensor, "B W"],
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    causal: bool = True,
) -> WindowAttention:
    """Sum the attention of queries that see the positions up to their own, or all if not `causal`.

    The keys are read twice: first for the sum of each softmax, then for the weights.
    """
    return folded(
        queries, keys, weights, scaling=scaling, softcap=softcap, sinks=sinks, causal=causal
    )


def folded(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N S D"],
    weights: Float[Tensor, " W"] | Float[Tensor, "B W"] | None,
    *,
    scaling: float,
    softcap: float | None,
    sinks: Float[Tensor, " H"] | None,
    causal: bool,
) -> WindowAttention:
    """Sum the attention of all queries by their weights; None: every weight is 1."""
    batch, heads, window = queries.shape[:3]
    kv_heads, positions = keys.shape[1:3]
    plan = plan_of(queries, keys, scaling=scaling, softcap=softcap)
    past = positions - window if causal else positions
    sizes = kv_heads, heads // kv_heads, window, positions, past, plan.group_blocks
    own = weights is not None and weights.dim() == 2
    if weights is not None and own:
        # The addresses of the sums serve once more: with others a program spills registers.
        weights = weights.float()[:, None].expand(-1, heads, -1).contiguous()
    attention = torch.empty(batch, heads, positions, dtype=torch.float32, device=keys.device)
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(keys):
        totals = log2_sums(queries, keys, sinks, plan, causal=causal)
        logsums = torch.empty_like(totals)
        _fold_kernel[(plan.blocks, batch * plan.places)](
            queries, keys, weights, totals, attention, logsums, *sizes, *plan.numbers,
            *queries.stride(), *keys.stride(), 0 if weights is None else weights.stride(-1),
            **plan.options, OWN_WEIGHTS=own,
        )  # fmt: skip
    return WindowAttention(attention, logsums)
