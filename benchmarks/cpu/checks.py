"""What must hold of an operation before its speed is told; each raises AssertionError if not."""

from __future__ import annotations

import torch

import kvpolicy
from benchmarks import authors_restkv, kvpress_snapkv
from kvpolicy import Observation, Policy
from kvpolicy.exactness.usages import one_prompt, small_policy
from kvpolicy.huggingface.attention.grouped import folded_attention
from kvpolicy.stages.grouping import reduce_groups
from kvpolicy.testing.models import tiny_model

HEADS, KV_HEADS, DIM, POSITIONS, BUDGET = 8, 2, 32, 300, 40
LIMIT = 1e-4
"""Logits of float32 models may differ by this much: the order of sums differs, nothing else."""


def layer(window: int) -> Observation:
    """Return a small layer whose attention is far from uniform."""
    draw = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 1, KV_HEADS, POSITIONS, DIM, generator=draw)
    return Observation(
        queries=torch.randn(1, HEADS, window, DIM, generator=draw) * 3,
        keys=keys,
        values=values,
        output_weight=torch.randn(256, HEADS * DIM, generator=draw) / 16,
        budget=BUDGET,
    )


def restkv_keeps_what_the_authors_keep() -> None:
    """With a key/value head for every query head both keep the same positions."""
    policy = kvpolicy.recipe("restkv", budget=BUDGET)
    shown = layer(policy.scorer.window or 0)
    alone = Observation(
        queries=shown.queries,
        keys=shown.keys.repeat_interleave(HEADS // KV_HEADS, dim=1),
        values=shown.values.repeat_interleave(HEADS // KV_HEADS, dim=1),
        output_weight=shown.output_weight,
        budget=BUDGET,
    )
    past = authors_restkv.past_positions(
        alone.queries, alone.keys, alone.values, shown.output_weight, budget=BUDGET
    )
    kept = policy.select(alone).indices[..., : BUDGET - shown.window]
    assert torch.equal(kept, past.sort(-1).values), "restkv keeps other positions than the authors"
    _heads_share_by_the_mean(policy, shown, alone)


def _heads_share_by_the_mean(policy: Policy, shown: Observation, alone: Observation) -> None:
    """Heads that share a key/value head are scored as if each had its own, then averaged."""
    separate = reduce_groups(policy.score(alone), KV_HEADS, "mean")
    together = reduce_groups(policy.score(shown), KV_HEADS, "mean")
    torch.testing.assert_close(together, separate, rtol=1e-4, atol=1e-6)


def snapkv_keeps_what_kvpress_keeps() -> None:
    """Both keep the same positions of every key/value head."""
    window = 16
    shown = layer(window)
    policy = kvpolicy.recipe("snapkv", scorer={"name": "snapkv", "window": window}, budget=BUDGET)
    best = kvpress_snapkv.scored(shown.queries, shown.keys).topk(BUDGET).indices
    kept = policy.select(shown).indices
    assert torch.equal(kept, best.sort(-1).values), "snapkv keeps other positions than kvpress"


def decoding_is_exact(recipe: str) -> None:
    """Logits are those of a full cache whose evicted entries are masked."""
    model = tiny_model("llama", num_hidden_layers=4)
    difference = one_prompt(model, small_policy(recipe))
    assert difference <= LIMIT, f"{recipe}: logits differ by {difference}"


def folding_is_attention() -> None:
    """Attention with folded groups is the softmax of every query head, in float64 the same."""
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(1, HEADS, 1, DIM, generator=draw, dtype=torch.float64)
    shape = (2, 1, KV_HEADS, POSITIONS, DIM)
    keys, values = torch.randn(shape, generator=draw, dtype=torch.float64)
    output = folded_attention(query, keys, values, 0.3)
    for head in range(HEADS):
        of_group = head // (HEADS // KV_HEADS)
        weights = (0.3 * query[0, head] @ keys[0, of_group].T).softmax(-1)
        torch.testing.assert_close(output[0, :, head], weights @ values[0, of_group])
