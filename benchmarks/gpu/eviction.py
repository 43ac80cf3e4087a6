"""Evicting one layer: against the layer's own prefill, and against the authors' algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from transformers import DynamicCache

import kvpolicy
from benchmarks import authors_restkv
from benchmarks.gpu.bench import Bench, Cell, under
from benchmarks.gpu.inputs import observation
from benchmarks.gpu.models import MODELS, random_model
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.timing import MIB, extra_bytes, interleaved, ratio, release

OPERATIONS = {
    "snapkv": ("window_attention", "pool_scores", "select", "gather_kv"),
    "restkv": (
        "window_attention",
        "weighted_values",
        "reconstruction_error",
        "row_statistics",
        "pool_scores",
        "select",
        "gather_kv",
    ),
}
"""What each recipe does behind the doors of kvpolicy_kernels."""

Call = Callable[[], object]


def cells(scale: Scale, lengths: Sequence[int]) -> Iterator[Cell]:
    """Evict at each length: time, and memory."""
    for length in lengths:
        measure = partial(time_eviction, length=length)
        yield Cell(key=f"eviction/time/{length}", measure=measure, seconds=4 + length / 6000)
        measure = partial(memory_of_eviction, length=length)
        yield Cell(key=f"eviction/memory/{length}", measure=measure)


def red(bench: Bench, recipe: str) -> str | None:
    """Say which check of what a recipe uses has failed."""
    return bench.red(*OPERATIONS[recipe], f"evict_{recipe}")


def prefill_layer(bench: Bench, length: int) -> Call:
    """Return a call that reads a prompt with one layer of the real model."""
    model = random_model(MODELS[0], bench.scale, 1, bench.device).model
    hidden = torch.randn(
        1, length, bench.scale.model_dim, dtype=bench.scale.dtype, device=bench.device
    )
    positions = torch.arange(length, device=bench.device)[None]
    rotary = model.rotary_emb(hidden, position_ids=positions)
    return lambda: model.layers[0](
        hidden,
        attention_mask=None,
        position_ids=positions,
        position_embeddings=rotary,
        past_key_values=DynamicCache(),
        use_cache=True,
    )


def evictions(bench: Bench, length: int) -> dict[str, Call]:
    """Return the evictions that are compared, by name."""
    layer = observation(bench.scale, length, bench.scale.dtype, bench.device)
    budget = bench.scale.budget
    restkv, snapkv = (kvpolicy.recipe(name, budget=budget) for name in ("restkv", "snapkv"))
    plain = kvpolicy.recipe(
        "restkv", budget=budget, smoother={"name": "spatiotemporal", "pooling": "avg"}
    )
    return {
        "restkv": under("auto", lambda: restkv.evict(layer)),
        "snapkv": under("auto", lambda: snapkv.evict(layer)),
        "restkv without row statistics": under("auto", lambda: plain.evict(layer)),
        "restkv, reference": under("reference", lambda: restkv.evict(layer)),
        "snapkv, reference": under("reference", lambda: snapkv.evict(layer)),
    }


def authors_eviction(bench: Bench, length: int) -> Call:
    """Return the authors' algorithm on the same layer, keys and values already repeated for it."""
    layer = observation(bench.scale, length, bench.scale.dtype, bench.device)
    groups = bench.scale.heads // bench.scale.kv_heads
    keys, values = (each.repeat_interleave(groups, 1) for each in (layer.keys, layer.values))
    assert layer.output_weight is not None
    weight = layer.output_weight
    return lambda: authors_restkv.evict(
        layer.queries, keys, values, weight, budget=bench.scale.budget
    )


@torch.no_grad()
def time_eviction(bench: Bench, length: int) -> None:
    """Time one layer's prefill, our evictions of it and the authors', in turns."""
    calls = {"prefill layer": prefill_layer(bench, length), **evictions(bench, length)}
    calls["authors' algorithm"] = authors_eviction(bench, length)
    timings = interleaved(calls, bench.device, repeats=bench.scale.repeats, limit=8.0)
    prefill = timings.pop("prefill layer")
    shape = {"B": 1, "L": length, "K": bench.scale.budget}
    bench.note("eviction", "prefill layer", prefill, "s", shape=shape)
    for name, timing in timings.items():
        recipe = name.split()[0].rstrip(",")
        ours = name in OPERATIONS or "without" in name
        bench.note(
            "eviction",
            "evict",
            ratio(timing, prefill),
            "share",
            variant=name,
            against="prefill layer",
            timing=timing,
            shape=shape,
            failure=red(bench, recipe) if ours else None,
        )
    bench.note(
        "eviction",
        "speed-up",
        ratio(timings["authors' algorithm"], timings["restkv"]),
        "ratio",
        variant="restkv",
        against="authors' algorithm",
        timing=timings["restkv"],
        shape=shape,
        failure=red(bench, "restkv"),
    )


@torch.no_grad()
def memory_of_eviction(bench: Bench, length: int) -> None:
    """Find the memory that an eviction takes at its peak, beyond the layer's own."""
    calls = {**evictions(bench, length), "authors' algorithm": authors_eviction(bench, length)}
    shape = {"B": 1, "L": length, "K": bench.scale.budget}
    # The first call of a process also takes what its libraries keep.
    calls["restkv"]()
    extras: dict[str, int | str] = {}
    for name, call in calls.items():
        extras[name] = extra = extra_bytes(call, bench.device)
        release()
        bench.note(
            "eviction",
            "extra memory",
            extra if isinstance(extra, str) else extra / MIB,
            "MiB",
            variant=name,
            shape=shape,
            settings={"layer_kv_mib": length * bench.scale.kv_bytes / MIB},
        )
    theirs, ours = extras["authors' algorithm"], extras["restkv"]
    failure = next((each for each in (theirs, ours) if isinstance(each, str)), None)
    bench.note(
        "eviction",
        "memory saved",
        failure or theirs / ours,
        "ratio",
        variant="restkv",
        against="authors' algorithm",
        shape=shape,
    )
