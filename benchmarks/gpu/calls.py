"""A call of each door of kvpolicy_kernels, with random inputs at real shapes."""

# ruff: noqa: D103
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import kvpolicy_kernels as doors
from benchmarks.gpu.scale import Scale
from benchmarks.layers import Source

Call = Callable[[], Any]


def scaling(source: Source[Scale]) -> float:
    """Return 1 / sqrt(D)."""
    return 1 / math.sqrt(source.scale.dim)


def ema(source: Source[Scale]) -> Tensor:
    """Return weights of the window that sum to one, the newest largest."""
    ages = torch.arange(source.scale.window - 1, -1, -1, device=source.device)
    return (0.3 * 0.7**ages).softmax(0)


def attention(source: Source[Scale]) -> Tensor:
    """Return weights like those of smoothed attention: few are large, many are small."""
    logits = source.normal(1, source.scale.heads, source.length, dtype=torch.float32)
    return (logits * 3).softmax(-1)


def factors(source: Source[Scale]) -> Tensor:
    """Return factors of a random output projection."""
    shape = (source.scale.heads, source.scale.dim, source.scale.dim)
    return source.normal(*shape, dtype=torch.float32).triu() / math.sqrt(source.scale.dim)


def window_attention(source: Source[Scale]) -> Call:
    queries, keys, weights = source.queries(), source.rows(), ema(source)
    return lambda: doors.window_attention(queries, keys, weights, scaling=scaling(source))


def weighted_values(source: Source[Scale]) -> Call:
    weights, values = attention(source), source.rows()
    return lambda: doors.weighted_values(weights, values)


def reconstruction_error(source: Source[Scale]) -> Call:
    weights, values, projection = attention(source), source.rows(), factors(source)
    with torch.no_grad():
        groups = source.scale.heads // source.scale.kv_heads
        output = torch.stack(
            [weights[0, h] @ values[0, h // groups].float() for h in range(source.scale.heads)]
        )[None]
    return lambda: doors.reconstruction_error(weights, values, output, projection)


def projected_norms(source: Source[Scale]) -> Call:
    values, weight = source.rows(), source.output_weight()
    columns = weight.view(len(weight), source.scale.heads, -1).transpose(0, 1)
    return lambda: doors.projected_norms(values, columns)


def row_statistics(source: Source[Scale]) -> Call:
    queries, keys = source.queries(), source.rows()
    count = min(source.scale.budget - source.scale.window, source.length // 2)
    return lambda: doors.row_statistics(queries, keys, count, scaling=scaling(source))


def pool_scores(source: Source[Scale]) -> Call:
    scores = doors.odds(attention(source))
    shape = scores.shape[:2]
    drift = (source.uniform(*shape) * 6 - 3).long()
    widths, shifts = 5 + 2 * drift.abs(), drift
    return lambda: doors.pool_scores(scores, widths, shifts)


def select(source: Source[Scale]) -> Call:
    scores = source.uniform(1, source.scale.kv_heads, source.length)
    # Ties at every level, as pooling makes them.
    scores = (scores * source.length / 3).floor()
    scores[..., -source.scale.window :] = torch.inf
    count = min(source.scale.budget, source.length // 2)
    budgets = torch.full(scores.shape[:2], count, device=source.device)
    return lambda: doors.select(scores, budgets, count=count)


def gather_kv(source: Source[Scale]) -> Call:
    keys, values = source.rows(), source.rows()
    rows = source.kept(min(source.scale.budget, source.length // 2))
    return lambda: doors.gather_kv(keys, values, rows)


def rerotate_keys(source: Source[Scale]) -> Call:
    keys = source.rows()
    shape = (1, source.scale.kv_heads, source.length, source.scale.dim // 2)

    def table(turns: float) -> tuple[Tensor, Tensor]:
        angles = source.uniform(*shape).mul_(turns * 2 * math.pi)
        doubled = torch.cat([angles, angles], -1)
        return doubled.cos(), doubled.sin()

    old, new = table(1.0), table(1.0)
    return lambda: doors.rerotate_keys(keys, old, new)


def uneven_lengths(source: Source[Scale]) -> Tensor:
    """Return lengths from a quarter to seven quarters of their mean, which is `source.length`."""
    count = source.scale.kv_heads
    steps = torch.linspace(0.25, 1.75, count, dtype=torch.float64)
    lengths = (steps * source.length).long()
    lengths[-1] += count * source.length - lengths.sum()
    return lengths[None]


def ragged_attention(source: Source[Scale]) -> Call:
    lengths = uneven_lengths(source)
    total, tail = int(lengths.sum()), source.scale.window
    prefix_keys, prefix_values = (source.normal(total, source.scale.dim) for _ in range(2))
    keys, values = source.rows(tail), source.rows(tail)
    queries = source.queries(1)
    return lambda: doors.ragged_attention(
        queries, prefix_keys, prefix_values, lengths, keys, values, scaling=scaling(source)
    )


def other_attention(source: Source[Scale]) -> Mapping[str, Call]:
    """Return PyTorch's attention of one query: over even heads as long, and over uneven ones."""
    scale, length = source.scale, source.length + source.scale.window
    keys, values, queries = source.rows(length), source.rows(length), source.queries(1)
    folded = queries.reshape(1, scale.kv_heads, -1, scale.dim)
    attend = F.scaled_dot_product_attention
    found: dict[str, Call] = {
        "sdpa, grouped": partial(attend, queries, keys, values, enable_gqa=True),
        "sdpa, folded": partial(attend, folded, keys, values),
    }
    return {**found, **(_varlen_attention(source) if source.device.type == "cuda" else {})}


def _varlen_attention(source: Source[Scale]) -> Mapping[str, Call]:
    """Return PyTorch's attention over sequences of uneven length; each head is a sequence."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # before torch 2.10
        return {}
    scale, lengths = source.scale, uneven_lengths(source)[0]
    groups = scale.heads // scale.kv_heads
    keys, values = (source.normal(int(lengths.sum()), 1, scale.dim) for _ in range(2))
    queries = source.queries(1).reshape(scale.heads, 1, scale.dim)
    starts = F.pad(lengths.cumsum(0), (1, 0)).to(source.device, torch.int32)
    rows = torch.arange(scale.kv_heads + 1, device=source.device, dtype=torch.int32) * groups
    return {
        "varlen_attn": partial(
            varlen_attn, queries, keys, values, rows, starts, groups, int(lengths.max())
        )
    }


def column_attention(source: Source[Scale]) -> Call:
    queries, keys = source.queries(source.length), source.rows()
    return lambda: doors.column_attention(queries, keys, scaling=scaling(source))
