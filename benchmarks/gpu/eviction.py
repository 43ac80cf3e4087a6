"""Evicting one layer: beside the layer's own prefill, and beside the authors' algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from transformers import DynamicCache

from benchmarks.bench import Bench, Cell
from benchmarks.evictions import authors, ours
from benchmarks.gpu.choice import under
from benchmarks.gpu.models import MODELS, random_model
from benchmarks.gpu.scale import Scale
from benchmarks.layers import random_layer
from benchmarks.memory import extra_bytes
from benchmarks.timing import MIB, interleaved, quotient, ratio, release
from kvpolicy.huggingface.cache_argument import handed

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
"""The doors of kvpolicy_kernels that each recipe calls."""
AVERAGED = {"name": "spatiotemporal", "pooling": "avg"}
AUTHORS = "authors' algorithm"

Call = Callable[[], object]


def cells(lengths: Sequence[int]) -> Iterator[Cell[Scale]]:
    """Give time and memory at each length."""
    for length in lengths:
        measure = partial(time_eviction, length=length)
        yield Cell(key=f"eviction/time/{length}", measure=measure, seconds=4 + length / 6000)
        measure = partial(memory_of_eviction, length=length)
        yield Cell(key=f"eviction/memory/{length}", measure=measure)


def red(bench: Bench[Scale], recipe: str) -> str | None:
    """Say which check of what a recipe uses has failed."""
    return bench.red(*OPERATIONS[recipe], f"evict_{recipe}")


def prefill_layer(bench: Bench[Scale], length: int) -> Call:
    """Return a call that reads a prompt with one layer of the real model."""
    scale, device = bench.scale, bench.device
    model = random_model(MODELS[0], scale, 1, device).model
    hidden = torch.randn(1, length, scale.model_dim, dtype=scale.dtype, device=device)
    positions = torch.arange(length, device=device)[None]
    rotary = model.rotary_emb(hidden, position_ids=positions)
    return lambda: model.layers[0](
        hidden,
        attention_mask=None,
        position_ids=positions,
        position_embeddings=rotary,
        **handed(DynamicCache(), to=model.layers[0]),
        use_cache=True,
    )


def evictions(bench: Bench[Scale], length: int) -> dict[str, Call]:
    """Return the evictions that are compared, by name."""
    scale = bench.scale
    layer = random_layer(scale, length, scale.budget, scale.dtype, bench.device)
    restkv, snapkv = (ours(name, layer, scale.budget) for name in ("restkv", "snapkv"))
    plain = ours("restkv", layer, scale.budget, smoother=AVERAGED)
    return {
        "restkv": under("auto", restkv),
        "snapkv": under("auto", snapkv),
        "restkv without row statistics": under("auto", plain),
        "restkv, reference": under("reference", restkv),
        "snapkv, reference": under("reference", snapkv),
        AUTHORS: authors(layer, scale.budget),
    }


@torch.no_grad()
def time_eviction(bench: Bench[Scale], length: int) -> None:
    """Time the layer's prefill and its evictions in turns."""
    calls = {"prefill layer": prefill_layer(bench, length), **evictions(bench, length)}
    timings = interleaved(calls, bench.device, repeats=bench.scale.repeats, limit=8.0)
    prefill = timings.pop("prefill layer")
    note = partial(bench.note, "eviction", shape={"B": 1, "L": length, "K": bench.scale.budget})
    note("prefill layer", prefill, "s")
    for name, timing in timings.items():
        recipe = name.split()[0].rstrip(",")
        with_kernels = name in OPERATIONS or "without" in name
        note(
            "evict", ratio(timing, prefill), "share", variant=name, against="prefill layer",
            timing=timing, failure=red(bench, recipe) if with_kernels else None,
        )  # fmt: skip
    note(
        "speed-up", ratio(timings[AUTHORS], timings["restkv"]), "ratio", variant="restkv",
        against=AUTHORS, timing=timings["restkv"], failure=red(bench, "restkv"),
    )  # fmt: skip


@torch.no_grad()
def memory_of_eviction(bench: Bench[Scale], length: int) -> None:
    """Measure the memory that an eviction takes at its peak, beside the layer's own."""
    calls = evictions(bench, length)
    note = partial(bench.note, "eviction", shape={"B": 1, "L": length, "K": bench.scale.budget})
    # The first call of a process also takes what its libraries keep.
    calls["restkv"]()
    extras: dict[str, int | str] = {}
    for name, call in calls.items():
        extras[name] = extra = extra_bytes(call, bench.device)
        release()
        note(
            "extra memory", quotient(extra, MIB), "MiB", variant=name,
            settings={"layer_kv_mib": length * bench.scale.kv_bytes / MIB},
        )  # fmt: skip
    saved = quotient(extras[AUTHORS], extras["restkv"])
    note("memory saved", saved, "ratio", variant="restkv", against=AUTHORS)
