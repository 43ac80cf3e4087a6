"""The steps of SnapKV in kvpress, to compare time and memory with.

It is written from what SnapKVPress and ScorerPress of NVIDIA/kvpress 8bb29b9 do: they repeat keys
for each query head, make the window's attention and a mask as [B, H, W, L], wait once for the
device, take an unsorted top-k, and gather with an expanded index.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

WINDOW = 64
WIDTH = 5


def evict(
    queries: Float[Tensor, "B H W D"],
    keys: Float[Tensor, "B N L D"],
    values: Float[Tensor, "B N L D"],
    *,
    budget: int,
    width: int = WIDTH,
) -> tuple[Float[Tensor, "B N K D"], Float[Tensor, "B N K D"]]:
    """Return the `budget` rows that a window of W queries attends to most, the window included."""
    scores = scored(queries, keys, width=width)
    best = scores.topk(budget, dim=-1).indices
    rows = best[..., None].expand(-1, -1, -1, keys.shape[-1])
    return keys.gather(2, rows).contiguous(), values.gather(2, rows).contiguous()


def scored(
    queries: Float[Tensor, "B H W D"], keys: Float[Tensor, "B N L D"], *, width: int = WIDTH
) -> Float[Tensor, "B N L"]:
    """Return the pooled attention of each position; the window gets the highest score."""
    batch, heads, window, _ = queries.shape
    kv_heads, length = keys.shape[1], keys.shape[2]
    attention = window_attention(queries, keys)[..., :-window]
    scores = attention.mean(dim=-2)
    scores = F.avg_pool1d(scores, kernel_size=width, padding=width // 2, stride=1)
    scores = scores.view(batch, kv_heads, heads // kv_heads, length - window).mean(2)
    return F.pad(scores, (0, window), value=scores.max().item())


def window_attention(
    queries: Float[Tensor, "B H W D"], keys: Float[Tensor, "B N L D"]
) -> Float[Tensor, "B H W L"]:
    """Return the causal attention of the window, normalised in float32."""
    groups, window = queries.shape[1] // keys.shape[1], queries.shape[2]
    repeated = keys.repeat_interleave(groups, dim=1)
    weights = torch.matmul(queries, repeated.transpose(2, 3)) / math.sqrt(queries.shape[-1])
    mask = torch.ones_like(weights) * float("-inf")
    weights += torch.triu(mask, diagonal=keys.shape[2] - window + 1)
    return weights.softmax(dim=-1, dtype=torch.float32).to(queries.dtype)
