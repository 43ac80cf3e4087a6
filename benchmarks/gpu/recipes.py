"""Recipes beside each other: a layer as each is shown it, and its eviction for one or many rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import attrs
import torch

import kvpolicy
from benchmarks.bench import Bench, Cell
from benchmarks.evictions import evict
from benchmarks.gpu.choice import under
from benchmarks.gpu.eviction import red, what_ran
from benchmarks.gpu.scale import Scale
from benchmarks.layers import Source, random_layer
from benchmarks.memory import extra_bytes
from benchmarks.timing import MIB, interleaved, quotient, ratio, release
from kvpolicy import Observation, Policy
from kvpolicy.observation.rotary import PlainRotary
from kvpolicy.stages.scoring import RunningScorer

RECIPES = ("restkv", "snapkv", "adakv", "h2o", "streamingllm", "lacache")
Call = Callable[[], object]


def shown_layer(
    policy: Policy, scale: Scale, length: int, dtype: torch.dtype, device: torch.device
) -> Observation:
    """Return a random layer with as many queries as the policy's scorer asks for."""
    layer = random_layer(scale, length, scale.budget, dtype, device)
    layer = attrs.evolve(layer, num_layers=scale.layers, rotary=PlainRotary(dim=scale.dim))
    window = policy.scorer.window
    if window is not None and not isinstance(policy.scorer, RunningScorer):
        return attrs.evolve(layer, queries=layer.queries[:, :, -window:])
    return attrs.evolve(layer, queries=Source(scale, length, dtype, device).queries(length))


def repeated(layer: Observation, rows: int) -> Observation:
    """Return a layer with so many equal rows."""
    queries, keys, values = (
        each.repeat(rows, 1, 1, 1) for each in (layer.queries, layer.keys, layer.values)
    )
    return attrs.evolve(layer, queries=queries, keys=keys, values=values)


def cells(shapes: Sequence[tuple[int, int]]) -> Iterator[Cell[Scale]]:
    """Give a cell for each (rows, positions)."""
    for rows, length in shapes:
        measure = partial(measure_recipes, rows=rows, length=length)
        yield Cell(key=f"eviction/recipes/{rows}x{length}", measure=measure, seconds=12)


@torch.no_grad()
def measure_recipes(bench: Bench[Scale], rows: int, length: int) -> None:
    """Time an eviction by each recipe in turns, and measure what it takes beside the layer."""
    calls = {name: eviction(bench, name, rows, length) for name in RECIPES}
    ran = {name: what_ran(call) for name, call in calls.items()}
    timings = interleaved(calls, bench.device, repeats=bench.scale.repeats, limit=6.0)
    shape = {"B": rows, "L": length, "K": bench.scale.budget}
    note = partial(bench.note, "eviction", shape=shape)
    for name, timing in timings.items():
        failure = red(bench, name)
        settings = {"ran": ran[name]}
        note("recipe", timing, "s", variant=name, settings=settings, failure=failure)
        note("recipe ratio", ratio(timing, timings["snapkv"]), "ratio", variant=name,
             against="snapkv", timing=timing, failure=failure)  # fmt: skip
        extra = extra_bytes(calls[name], bench.device)
        release()
        note("recipe's extra memory", quotient(extra, MIB), "MiB", variant=name,
             settings={"layer_kv_mib": rows * length * bench.scale.kv_bytes / MIB})  # fmt: skip


def eviction(bench: Bench[Scale], name: str, rows: int, length: int) -> Call:
    """Return a call that evicts a layer of so many rows by a recipe."""
    scale = bench.scale
    policy = kvpolicy.recipe(name, budget=scale.budget)
    layer = repeated(shown_layer(policy, scale, length, scale.dtype, bench.device), rows)
    return under("auto", partial(evict, policy, layer))
