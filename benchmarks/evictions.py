"""Evictions of one layer: ours, stage by stage too, and those of the peers.

All benchmarks evict through `evict` and choose positions through `kept_positions`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from jaxtyping import Int
from torch import Tensor

import kvpolicy
from benchmarks.peers import authors_restkv, kvpress_snapkv
from kvpolicy import Observation, Policy
from kvpolicy.cache.eviction.one_layer import evicted, selected
from kvpolicy.stages.grouping import reduce_groups
from kvpolicy.stages.selection import protect

Call = Callable[[], object]


def evict(policy: Policy, layer: Observation) -> tuple[Tensor, Tensor]:
    """Return the keys and values that a policy keeps of a layer."""
    contents = evicted(policy, layer)
    return contents.keys.view, contents.values.view


def kept_positions(policy: Policy, layer: Observation) -> Int[Tensor, "B N K"]:
    """Return the positions that a policy keeps of a layer, ascending."""
    return selected(policy, layer).indices


def stages(policy: Policy, layer: Observation) -> Iterator[str]:
    """Evict; yield the name of each stage when it is done."""
    kv_heads = layer.keys.shape[1]
    scores = policy.scorer.score(layer, policy.fold)
    yield "score"
    scores = policy.smoother.spatial(scores, layer)
    yield "smooth"
    scores = reduce_groups(scores, kv_heads, policy.group)
    recent = policy.recent_of(layer.budget)
    scores = protect(scores, layer, sinks=policy.sinks, recent=recent)
    yield "reduce, protect"
    budgets = policy.allocator.allocate(scores, layer, layer.budget)
    yield "allocate"
    selection = policy.selector.select(scores, budgets)
    yield "select"
    policy.compact(layer.keys, layer.values, selection, layer)
    yield "compact"


def stage_seconds(policy: Policy, layer: Observation, repeats: int) -> dict[str, float]:
    """Return the seconds of each stage, on a CPU; the fastest of several repeats."""
    fastest: dict[str, float] = {}
    for _ in range(repeats):
        started = time.perf_counter()
        for stage in stages(policy, layer):
            seconds = time.perf_counter() - started
            fastest[stage] = min(seconds, fastest.get(stage, seconds))
            started = time.perf_counter()
    return fastest


def ours(recipe: str, layer: Observation, budget: int, **changes: Any) -> Call:
    """Return a call that evicts a layer by recipe `restkv` or `snapkv`, with the layer's window."""
    scorer = {"name": recipe, "window": layer.window}
    policy = kvpolicy.recipe(recipe, scorer=scorer, budget=budget, **changes)
    return lambda: evict(policy, layer)


def authors(layer: Observation, budget: int) -> Call:
    """Return a call of the authors' algorithm of ReST-KV; keys and values are repeated before."""
    groups = layer.queries.shape[1] // layer.keys.shape[1]
    keys, values = (each.repeat_interleave(groups, dim=1) for each in (layer.keys, layer.values))
    weight = layer.output_weight
    assert weight is not None
    return lambda: authors_restkv.evict(layer.queries, keys, values, weight, budget=budget)


def kvpress(layer: Observation, budget: int) -> Call:
    """Return a call of the steps of kvpress' SnapKV."""
    return lambda: kvpress_snapkv.evict(layer.queries, layer.keys, layer.values, budget=budget)
