"""Whole prefills of real models: their time and peak memory, with full and evicted caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from transformers import DynamicCache, PreTrainedModel

import kvpolicy
from benchmarks.bench import Bench, Cell
from benchmarks.gpu.choice import kernels
from benchmarks.gpu.eviction import red
from benchmarks.gpu.models import prompt, random_model
from benchmarks.gpu.scale import Scale
from benchmarks.memory import extra_bytes
from benchmarks.timing import MIB, interleaved, quotient, ratio, release
from kvpolicy.huggingface.cache_argument import handed

RECIPES = ("restkv", "snapkv")
Call = Callable[[], object]


def time_cells(name: str, shapes: Sequence[tuple[int, int]], layers: int) -> Iterator[Cell[Scale]]:
    """Give a cell for the time of each (rows, tokens)."""
    for batch, length in shapes:
        yield Cell(
            key=f"prefill/time/{name}/{batch}x{length}",
            measure=partial(time_prefill, name=name, batch=batch, length=length, layers=layers),
            seconds=6 + batch * (length / 16_000 + (length / 36_000) ** 2),
        )


def memory_cells(name: str, lengths: Sequence[int]) -> Iterator[Cell[Scale]]:
    """Give a cell for the peak memory of one row, at each length."""
    for length in lengths:
        yield Cell(
            key=f"prefill/memory/{name}/{length}",
            measure=partial(memory_of_prefill, name=name, length=length),
            seconds=15 + 4 * (length / 20_000 + (length / 45_000) ** 2),
        )


def reading(
    bench: Bench[Scale], model: PreTrainedModel, recipe: str | None, tokens: torch.Tensor
) -> Call:
    """Return a call that reads a prompt into a full cache, or into one that a recipe evicts."""

    def read() -> None:
        if recipe is None:
            model(tokens, **handed(DynamicCache(config=model.config), to=model), logits_to_keep=1)
            return
        policy = kvpolicy.recipe(recipe, budget=bench.scale.budget)
        with kernels("auto"), policy.cache(model) as cache:
            model(tokens, **handed(cache, to=model), logits_to_keep=1)

    return read


@torch.no_grad()
def time_prefill(bench: Bench[Scale], name: str, batch: int, length: int, layers: int) -> None:
    """Time prefills with a full and with evicted caches, in turns."""
    model = random_model(name, bench.scale, layers, bench.device)
    tokens = prompt(model, length, batch)
    calls = {recipe or "full": reading(bench, model, recipe, tokens) for recipe in (None, *RECIPES)}
    timings = interleaved(
        calls, bench.device, repeats=bench.scale.repeats, warmup=1, limit=10.0, wall=True
    )
    shape = {"B": batch, "L": length, "K": bench.scale.budget}
    settings = {"model": name, "layers": layers}
    for variant, timing in timings.items():
        failure = None if variant == "full" else red(bench, variant)
        bench.note(
            "prefill", "prefill", timing, "s",
            variant=variant, shape=shape, settings=settings, failure=failure,
        )  # fmt: skip
    for variant, base in (("restkv", "full"), ("snapkv", "full"), ("restkv", "snapkv")):
        bench.note(
            "prefill", "prefill ratio", ratio(timings[variant], timings[base]), "ratio",
            variant=variant, against=base, timing=timings[variant],
            shape=shape, settings=settings, failure=red(bench, variant),
        )  # fmt: skip


@torch.no_grad()
def memory_of_prefill(bench: Bench[Scale], name: str, length: int) -> None:
    """Measure the peak of a whole model's prefill: weights, cache and temporaries."""
    model = random_model(name, bench.scale, bench.scale.layers, bench.device)
    tokens = prompt(model, length)
    weights = sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    peaks: dict[str, int | str] = {}
    for recipe in (None, "restkv"):
        for chunked in (False, True):
            variant = (recipe or "full") + (", chunked MLP" if chunked else "")
            chunks = kvpolicy.chunked_mlp(model, tokens=bench.scale.mlp_chunk)
            with chunks if chunked else nullcontext():
                extra = extra_bytes(reading(bench, model, recipe, tokens), bench.device)
            release()
            peaks[variant] = extra if isinstance(extra, str) else extra + weights
            note_peak(bench, name, length, variant, peaks)


def note_peak(
    bench: Bench[Scale], name: str, length: int, variant: str, peaks: dict[str, int | str]
) -> None:
    """Note one peak, weights included, and its ratio to that of the full cache without chunks."""
    settings = {
        "model": name,
        "layers": bench.scale.layers,
        "mlp_chunk": bench.scale.mlp_chunk if "chunked" in variant else None,
    }
    shape = {"B": 1, "L": length, "K": bench.scale.budget}
    peak, share = peaks[variant], quotient(peaks[variant], peaks["full"])
    bench.note(
        "prefill", "peak memory", quotient(peak, MIB), "MiB",
        variant=variant, shape=shape, settings=settings,
    )  # fmt: skip
    bench.note(
        "prefill", "peak memory ratio", share, "ratio",
        variant=variant, against="full", shape=shape, settings=settings,
    )  # fmt: skip
