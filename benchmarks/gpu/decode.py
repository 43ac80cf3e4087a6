"""Decode steps with full, evicted and uneven caches, launched eagerly and as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor
from transformers import PreTrainedModel

import kvpolicy
from benchmarks.bench import Bench, Cell
from benchmarks.gpu.caches import fixed_cache, growing_cache
from benchmarks.gpu.choice import kernels, under
from benchmarks.gpu.eviction import red
from benchmarks.gpu.graphs import captured
from benchmarks.gpu.models import prompt, random_model
from benchmarks.gpu.scale import Scale
from benchmarks.memory import free_bytes
from benchmarks.timing import Timing, interleaved, ratio
from benchmarks.uneven import UnevenAllocator
from kvpolicy.huggingface.cache_argument import handed

Call = Callable[[], Any]
EAGER = ("full, DynamicCache", "full, dense", "evicted, dense", "evicted", "uneven")
GRAPHS = (("full, dense", "evicted, dense", "evicted"), ("uneven", "evicted, dense"))
"""Two groups, since a capture that fails may leave the device unusable."""

RATIOS = (
    ("full, dense", "evicted", "full over evicted"),
    ("evicted", "evicted, dense", "evicted over dense"),
    ("uneven", "evicted, dense", "uneven over dense"),
)
"""A step, the step that it is divided by, and the name of the ratio."""


@attrs.frozen
class Step:
    """A decode step."""

    call: Call
    red: str | None = None
    note: str = ""


def cells(name: str, shapes: Sequence[tuple[int, int]]) -> Iterator[Cell[Scale]]:
    """Give a cell for each (rows, tokens read before)."""
    for batch, length in shapes:
        yield Cell(
            key=f"decode/step/{name}/{batch}x{length}",
            measure=partial(time_steps, name=name, batch=batch, length=length),
            seconds=25,
        )


def step_of(model: PreTrainedModel, cache: Any, token: Tensor) -> Call:
    """Return a call that decodes one token."""
    return lambda: model(token, **handed(cache, to=model), use_cache=True).logits


def evicted_cache(bench: Bench[Scale], model: PreTrainedModel, batch: int, **parts: Any) -> Any:
    """Return a cache that has evicted half of a prompt."""
    budget = bench.scale.budget
    cache = kvpolicy.recipe("snapkv", budget=budget, **parts).cache(model)
    with kernels("auto"):
        model(prompt(model, 2 * budget, batch), **handed(cache, to=model), logits_to_keep=1)
    return cache


def steps(bench: Bench[Scale], model: PreTrainedModel, batch: int, length: int) -> dict[str, Step]:
    """Return the steps that are compared, by what the cache is."""
    scale, layers, device = bench.scale, bench.scale.layers, bench.device
    token = prompt(model, 1, batch)
    full = fixed_cache(scale, length, batch, layers, device)
    # The evicted cache holds one more token with each step; both hold as many at the first.
    small = fixed_cache(scale, scale.budget, batch, layers, device)
    even = evicted_cache(bench, model, batch)
    uneven = evicted_cache(bench, model, batch, allocator=UnevenAllocator())
    spread = f"layers with uneven heads: {sum(each.is_uneven for each in uneven.policy_layers)}"
    compared = {
        "full, dense": Step(step_of(model, full, token)),
        "evicted, dense": Step(step_of(model, small, token)),
        "evicted": Step(under("auto", step_of(model, even, token)), red=red(bench, "snapkv")),
        "uneven": Step(
            under("auto", step_of(model, uneven, token)),
            red=red(bench, "snapkv") or bench.red("ragged_attention"),
            note=spread,
        ),
    }
    # Its first step copies the cache.
    if free_bytes(device) > 1.2 * layers * batch * length * scale.kv_bytes:
        growing = growing_cache(full, model.config)
        compared["full, DynamicCache"] = Step(step_of(model, growing, token))
    return compared


@torch.no_grad()
def time_steps(bench: Bench[Scale], name: str, batch: int, length: int) -> None:
    """Time steps in turns: launched eagerly, then as CUDA graphs."""
    model = random_model(name, bench.scale, bench.scale.layers, bench.device)
    try:
        compared = steps(bench, model, batch, length)
        for form, group in (("eager", EAGER), *(("CUDA graph", group) for group in GRAPHS)):
            calls = {each: compared[each].call for each in group if each in compared}
            timings = timed_in(form, calls, bench)
            note_steps(bench, name, (batch, length), form, compared, timings)
    finally:
        kvpolicy.restore(model)


def timed_in(form: str, calls: dict[str, Call], bench: Bench[Scale]) -> dict[str, Timing | str]:
    """Time steps in one form; return the reason for a step that cannot be captured."""
    timings: dict[str, Timing | str] = {}
    ready: dict[str, Call] = {}
    for name, call in calls.items():
        try:
            ready[name] = call if form == "eager" else captured(call, bench.device)
        except RuntimeError as error:
            timings[name] = f"cannot be captured: {str(error).strip().splitlines()[0]}"
    return timings | interleaved(
        ready,
        bench.device,
        repeats=bench.scale.repeats,
        warmup=3,
        limit=6.0,
        wall=form == "eager",
    )


def note_steps(
    bench: Bench[Scale],
    name: str,
    shape: tuple[int, int],
    form: str,
    compared: dict[str, Step],
    timings: dict[str, Timing | str],
) -> None:
    """Note the times of steps in one form, and their ratios."""
    sizes = {"B": shape[0], "L": shape[1], "K": bench.scale.budget}
    settings = {"model": name, "layers": bench.scale.layers, "form": form}
    plain = form == "CUDA graph" and bench.device.type != "cuda"
    for variant, timing in timings.items():
        step = compared[variant]
        note = "; ".join([step.note] * bool(step.note) + ["a CPU has no graphs"] * plain)
        bench.note(
            "decode", "step", timing, "s", variant=variant, shape=sizes,
            settings=settings, failure=step.red, note=note,
        )  # fmt: skip
    for variant, base, title in RATIOS:
        if variant in timings and base in timings:
            bench.note(
                "decode", title, ratio(timings[variant], timings[base]), "ratio",
                variant=variant, against=base, timing=timings[variant], shape=sizes,
                settings=settings, failure=compared[variant].red or compared[base].red,
            )  # fmt: skip
