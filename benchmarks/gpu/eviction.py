"""Evicting one layer: beside the layer's own prefill, and beside the authors' algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from transformers import DynamicCache

from benchmarks.bench import Bench, Cell
from benchmarks.evictions import authors, ours
from benchmarks.gpu.choice import recorded, under
from benchmarks.gpu.models import MODELS, random_model
from benchmarks.gpu.scale import Scale
from benchmarks.layers import random_layer
from benchmarks.memory import extra_bytes
from benchmarks.timing import MIB, failure_of, interleaved, quotient, ratio, release
from kvpolicy.huggingface.cache_argument import handed

AVERAGED = {"name": "spatiotemporal", "pooling": "avg"}
AUTHORS = "authors' algorithm"
AGAIN = "restkv, again"
"""The same call twice: how far two rows of one thing are apart."""

Call = Callable[[], object]


def cells(lengths: Sequence[int]) -> Iterator[Cell[Scale]]:
    """Give time and memory at each length."""
    for length in lengths:
        measure = partial(time_eviction, length=length)
        yield Cell(key=f"eviction/time/{length}", measure=measure, seconds=4 + length / 6000)
        measure = partial(memory_of_eviction, length=length)
        yield Cell(key=f"eviction/memory/{length}", measure=measure)


def red(bench: Bench[Scale], recipe: str) -> str | None:
    """Say which check has failed: of a recipe's evictions, or of a door that they call."""
    check = f"evict_{recipe}"
    called = {door for row in bench.known if row.name == check for door in row.settings["ran"]}
    checked = {row.name for row in bench.known if row.benchmark == "gpu.checks"}
    return bench.red(check, *sorted(called & checked))


def what_ran(call: Call) -> dict[str, str] | str:
    """Call once; return what each door ran, or the failure."""
    with recorded() as found:
        return failure_of(call) or dict(found)


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
        AGAIN: under("auto", restkv),
        "snapkv": under("auto", snapkv),
        "restkv without row statistics": under("auto", plain),
        "restkv, reference": under("reference", restkv),
        "snapkv, reference": under("reference", snapkv),
        AUTHORS: authors(layer, scale.budget),
    }


@torch.no_grad()
def time_eviction(bench: Bench[Scale], length: int) -> None:
    """Time the layer's prefill and its evictions in turns."""
    compared = evictions(bench, length)
    ran = {name: what_ran(call) for name, call in compared.items()}
    calls = {"prefill layer": prefill_layer(bench, length), **compared}
    timings = interleaved(calls, bench.device, repeats=bench.scale.repeats, limit=8.0)
    prefill = timings.pop("prefill layer")
    note = partial(bench.note, "eviction", shape={"B": 1, "L": length, "K": bench.scale.budget})
    note("prefill layer", prefill, "s")
    for name, timing in timings.items():
        recipe = name.split()[0].rstrip(",")
        with_kernels = name != AUTHORS and not name.endswith("reference")
        note(
            "evict", ratio(timing, prefill), "share", variant=name, against="prefill layer",
            timing=timing, settings={"ran": ran[name]},
            failure=red(bench, recipe) if with_kernels else None,
        )  # fmt: skip
    note("same call twice", ratio(timings[AGAIN], timings["restkv"]), "ratio", variant=AGAIN,
         against="restkv", timing=timings[AGAIN], failure=red(bench, "restkv"))  # fmt: skip
    note(
        "speed-up", ratio(timings[AUTHORS], timings["restkv"]), "ratio", variant="restkv",
        against=AUTHORS, timing=timings["restkv"], failure=red(bench, "restkv"),
    )  # fmt: skip


@torch.no_grad()
def memory_of_eviction(bench: Bench[Scale], length: int) -> None:
    """Measure the memory that an eviction takes at its peak, beside the layer's own."""
    calls = evictions(bench, length)
    note = partial(bench.note, "eviction", shape={"B": 1, "L": length, "K": bench.scale.budget})
    del calls[AGAIN]
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
