"""Evicting one layer: time and memory beside the peers, by length, and by stage."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import attrs

import kvpolicy
from benchmarks import evictions
from benchmarks.bench import Bench, Cell
from benchmarks.cpu.cases import Case
from benchmarks.cpu.scale import Scale
from benchmarks.cpu.targets import MEMORY, SPEED, TIME
from benchmarks.evictions import Call
from benchmarks.memory import extra_mib
from benchmarks.timing import Timing, interleaved, ratio

OURS = ("restkv", "snapkv")
PROCESSES = 3
"""Processes that measure our memory. The largest counts: allocators do not always ask alike."""


def cells(scale: Scale) -> Iterator[Cell[Scale]]:
    """Give the comparisons, then costs by length, then stages."""
    for case, repeats in scale.against_authors:
        yield _comparison(case, ("restkv", "authors"), repeats)
    yield _comparison(scale.against_kvpress, ("snapkv", "kvpress"), scale.repeats)
    yield _comparison(scale.long, ("restkv",), scale.repeats)
    for name in OURS:
        yield Cell(key=f"growth/{name}", measure=partial(cost_by_length, name=name))
        yield Cell(key=f"stages/{name}", measure=partial(seconds_by_stage, name=name))


def _comparison(case: Case, names: tuple[str, ...], repeats: int) -> Cell[Scale]:
    measure = partial(compare, case=case, names=names, repeats=repeats)
    return Cell(key=f"layer/{names[0]}/{case.positions}", measure=measure)


def call_of(name: str, case: Case) -> Call:
    """Return a call that evicts the layer of a case."""
    layer, peers = case.layer(), {"authors": evictions.authors, "kvpress": evictions.kvpress}
    if name in peers:
        return peers[name](layer, case.budget)
    return evictions.ours(name, layer, case.budget)


def extra_memory(name: str, case: Case) -> float:
    """Return the MiB that an eviction needs beside the layer; for a fresh process."""
    # The first eviction loads libraries and starts their threads.
    window = case.layer_shape.window
    call_of(name, attrs.evolve(case, positions=2 * window, budget=window + 1))()
    return extra_mib(call_of(name, case))


def compare(bench: Bench[Scale], case: Case, names: tuple[str, ...], repeats: int) -> None:
    """Time evictions of one layer in turns, ours first; and measure their memory."""
    ours, *theirs = names
    scale, red = bench.scale, bench.red(ours)
    calls = {name: call_of(name, case) for name in names}
    times = interleaved(calls, bench.device, repeats=repeats, warmup=0, limit=math.inf)
    mine = [scale.alone(extra_memory, ours, case) for _ in range(1 if scale.toy else PROCESSES)]
    memory = {ours: max(mine)} | {name: scale.alone(extra_memory, name, case) for name in theirs}
    note = partial(bench.note, "layer", shape=case.shape, dtype=case.torch_dtype)
    for name in names:
        failure = red if name == ours else None
        note(TIME, times[name], "s", variant=name, failure=failure)
        note(MEMORY, memory[name], "MiB", variant=name, failure=failure)
    for name in theirs:
        pair = partial(note, variant=ours, against=name, failure=red)
        pair(SPEED, ratio(times[name], times[ours], fastest), "ratio")
        if memory[name]:
            pair(MEMORY, memory[ours] / memory[name], "ratio")


def fastest(timing: Timing) -> float:
    """Return the fastest repeat."""
    return timing.minimum


def cost_by_length(bench: Bench[Scale], name: str) -> None:
    """Measure time and memory at each length."""
    scale = bench.scale
    for length in scale.lengths:
        case = attrs.evolve(scale.long, positions=length, budget=scale.grown_to)
        call = {name: call_of(name, case)}
        times = interleaved(call, bench.device, repeats=scale.repeats, warmup=1, limit=math.inf)
        note = partial(
            bench.note, "growth", variant=name, shape=case.shape, dtype=case.torch_dtype,
            failure=bench.red(name),
        )  # fmt: skip
        note(TIME, times[name], "s")
        note(MEMORY, scale.alone(extra_memory, name, case), "MiB")


def seconds_by_stage(bench: Bench[Scale], name: str) -> None:
    """Time each stage of an eviction on its own."""
    scale = bench.scale
    policy = kvpolicy.recipe(name, budget=scale.long.budget)
    for case in (*(case for case, _ in scale.against_authors), scale.long):
        found = evictions.stage_seconds(policy, case.layer(), scale.repeats)
        for stage, seconds in found.items():
            bench.note(
                "stages", stage, seconds, "s", variant=name, dtype=case.torch_dtype,
                shape=case.shape, repeats=scale.repeats, failure=bench.red(name),
            )  # fmt: skip
