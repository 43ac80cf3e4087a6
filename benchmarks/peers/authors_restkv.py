"""The authors' algorithm of ReST-KV, step by step as published, to compare time and memory with.

It is written from the description (An et al., ICLR 2026,
https://openreview.net/forum?id=PhEHuo7oMm, released code an-yongqi/rest-kv), and does what that
code does: it repeats keys and values for each query head, computes the window's attention as [H, W,
L], averages over time in a loop, projects each value to the size of the model, and pools head by
head, waiting for the device each time. It rounds to the model's dtype where the released code does.
"""

from __future__ import annotations

import math

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@attrs.frozen(kw_only=True)
class Settings:
    """The published setting."""

    alpha: float = 0.3
    width: int = 5
    scale: float = 2000.0


PUBLISHED = Settings()


def evict(
    queries: Float[Tensor, "1 H W D"],
    keys: Float[Tensor, "1 H L D"],
    values: Float[Tensor, "1 H L D"],
    output_weight: Float[Tensor, "C HD"],
    *,
    budget: int,
    settings: Settings = PUBLISHED,
) -> tuple[Float[Tensor, "1 H K D"], Float[Tensor, "1 H K D"]]:
    """Return the keys and values of `budget` positions for each query head; the window comes last.

    Keys and values are given for each query head: the published code repeats them before.
    """
    window = queries.shape[2]
    best = past_positions(queries, keys, values, output_weight, budget=budget, settings=settings)
    rows = best[..., None].expand(-1, -1, -1, keys.shape[-1])
    kept = (
        torch.cat([each[:, :, :-window].gather(2, rows), each[:, :, -window:]], dim=2)
        for each in (keys, values)
    )
    kept_keys, kept_values = kept
    return kept_keys, kept_values


def past_positions(
    queries: Float[Tensor, "1 H W D"],
    keys: Float[Tensor, "1 H L D"],
    values: Float[Tensor, "1 H L D"],
    output_weight: Float[Tensor, "C HD"],
    *,
    budget: int,
    settings: Settings = PUBLISHED,
) -> Int[Tensor, "1 H n"]:
    """Return the best n = budget - W positions before the window, by descending score."""
    window = queries.shape[2]
    attention = window_attention(queries, keys)
    smoothed = averaged(attention[..., :-window], settings.alpha)
    scores = reconstruction_error(smoothed, values[:, :, :-window], output_weight)
    pooled = adaptively_pooled(scores, attention, budget - window, settings)
    return pooled.topk(budget - window, dim=-1).indices


def window_attention(
    queries: Float[Tensor, "1 H W D"], keys: Float[Tensor, "1 H L D"]
) -> Float[Tensor, "1 H W L"]:
    """Return the causal attention of the window, normalised in float32."""
    window = queries.shape[2]
    logits = torch.matmul(queries, keys.transpose(2, 3)) / math.sqrt(queries.shape[-1])
    lowest = torch.finfo(logits.dtype).min
    future = torch.full((window, window), lowest, dtype=logits.dtype, device=logits.device).triu(1)
    logits[..., -window:] += future
    return logits.softmax(dim=-1, dtype=torch.float32).to(queries.dtype)


def averaged(attention: Float[Tensor, "1 H W P"], alpha: float) -> Float[Tensor, "1 H P"]:
    """Return the exponential average over the window's queries, oldest first."""
    average = attention[:, :, 0]
    for query in range(1, attention.shape[2]):
        average = alpha * attention[:, :, query] + (1 - alpha) * average
    return average


def reconstruction_error(
    attention: Float[Tensor, "1 H P"],
    values: Float[Tensor, "1 H P D"],
    output_weight: Float[Tensor, "C HD"],
) -> Float[Tensor, "1 H P"]:
    """Return odds times the distance of each projected value from the projected output."""
    heads, dim = values.shape[1], values.shape[-1]
    by_head = output_weight.view(-1, heads, dim).permute(1, 2, 0)
    output = torch.matmul(attention[:, :, None], values)
    projected_output = torch.matmul(output, by_head)
    projected_values = torch.matmul(values, by_head)
    difference = projected_output - projected_values
    errors: Tensor = difference.norm(dim=-1)
    return attention / (1 - attention) * errors


def adaptively_pooled(
    scores: Float[Tensor, "1 H P"],
    attention: Float[Tensor, "1 H W L"],
    count: int,
    settings: Settings,
) -> Float[Tensor, "1 H P"]:
    """Average each head over neighbours; the drift of its attention sets width and shift."""
    half = attention.shape[2] // 2
    ranked = [
        part.argsort(dim=-1, descending=True)[..., :count] for part in attention[0].split(half, 1)
    ]
    front, rear = ranked
    drifts = (front - rear).float().mean(dim=(-2, -1))
    pooled = []
    for head in range(scores.shape[1]):
        drift = drifts[head]
        width = max(settings.width, 2 * int(drift.abs() / settings.scale) + 1)
        shift = int((drift / settings.scale).floor()) + int(drift <= 0)
        sides = (width // 2 - shift, width // 2 + shift)
        padded = F.pad(scores[:, head : head + 1], sides, mode="replicate")
        pooled.append(F.avg_pool1d(padded, width, stride=1))
    return torch.cat(pooled, dim=1)
