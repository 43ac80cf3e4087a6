"""Time and memory of evicting one layer of Llama-3.1-8B with ReST-KV, stage by stage.

python -m benchmarks.one_layer --positions 4096 16384 --dtype bfloat16
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import kvpolicy
from benchmarks.processes import extra_mib, in_a_fresh_process
from kvpolicy.stages.grouping import reduce_groups
from kvpolicy.stages.selection import protect

HEADS, KV_HEADS, DIM, MODEL_DIM, WINDOW, BUDGET = 32, 8, 128, 4096, 32, 1024
MIB = 2**20


def random_layer(
    positions: int, dtype: torch.dtype, *, window: int = WINDOW
) -> kvpolicy.Observation:
    """Return what an attention layer shows when the prompt has been read."""
    return kvpolicy.Observation(
        queries=torch.randn(1, HEADS, window, DIM, dtype=dtype),
        keys=torch.randn(1, KV_HEADS, positions, DIM, dtype=dtype),
        values=torch.randn(1, KV_HEADS, positions, DIM, dtype=dtype),
        output_weight=torch.randn(MODEL_DIM, HEADS * DIM, dtype=dtype).div_(MODEL_DIM**0.5),
        budget=BUDGET,
    )


def evict(policy: kvpolicy.Policy, layer: kvpolicy.Observation) -> Iterator[str]:
    """Do what `policy.evict` does; stop after each stage and say its name."""
    scores = policy.scorer.score(layer, policy.fold)
    yield "score"
    scores = policy.smoother.spatial(scores, layer)
    yield "smooth"
    scores = reduce_groups(scores, KV_HEADS, policy.group)
    scores = protect(scores, layer, sinks=policy.sinks, recent=policy.recent)
    yield "reduce, protect"
    budgets = policy.allocator.allocate(scores, layer, BUDGET)
    yield "allocate"
    selection = policy.selector.select(scores, budgets)
    yield "select"
    policy.compact(layer.keys, layer.values, selection, layer)
    yield "compact"


def seconds_of(function: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def stage_seconds(
    policy: kvpolicy.Policy, layer: kvpolicy.Observation, repeats: int
) -> dict[str, float]:
    """Each stage's fastest of several runs: what is slower measures the machine."""
    best: dict[str, float] = {}
    for _ in range(repeats):
        started = time.perf_counter()
        for stage in evict(policy, layer):
            seconds = time.perf_counter() - started
            best[stage] = min(seconds, best.get(stage, seconds))
            started = time.perf_counter()
    return best


def peak_mib(positions: int, dtype: str) -> float:
    """Resident memory that one eviction needs at its peak, on top of the layer; Linux only."""
    policy = kvpolicy.recipe("restkv", budget=BUDGET)
    # The first eviction loads libraries and starts their threads.
    policy.evict(random_layer(2 * BUDGET, getattr(torch, dtype)))
    layer = random_layer(positions, getattr(torch, dtype))
    assert layer.output_factors is not None
    return extra_mib(lambda: policy.evict(layer))


def measure(positions: int, dtype: str, repeats: int) -> dict[str, Any]:
    """One column of the table."""
    policy = kvpolicy.recipe("restkv", budget=BUDGET)
    layer = random_layer(positions, getattr(torch, dtype))
    threads = torch.get_num_threads()
    factor_seconds = seconds_of(lambda: layer.output_factors)
    return {
        "positions": positions,
        "dtype": dtype,
        "threads": threads,
        "stage_seconds": stage_seconds(policy, layer, repeats),
        "evict_seconds": min(seconds_of(lambda: policy.evict(layer)) for _ in range(repeats)),
        "factor_seconds": factor_seconds,
        "cache_mib": 2 * layer.keys.nbytes / MIB,
        "peak_extra_mib": in_a_fresh_process(peak_mib, positions, dtype),
    }


def show(results: list[dict[str, Any]]) -> None:
    """Print a column per length."""
    dtype, threads = results[0]["dtype"], results[0]["threads"]
    table = Table(title=f"ReST-KV, one layer to {BUDGET} positions, {dtype}, {threads} threads")
    table.add_column("positions")
    for result in results:
        table.add_column(f"{result['positions']:,}", justify="right")

    def row(name: str, number: Callable[[dict[str, Any]], float], digits: int = 0) -> None:
        table.add_row(name, *(f"{number(result):.{digits}f}" for result in results))

    for stage in results[0]["stage_seconds"]:
        row(f"{stage}, ms", lambda result, stage=stage: result["stage_seconds"][stage] * 1e3, 1)
    table.add_section()
    row("policy.evict, ms", lambda result: result["evict_seconds"] * 1e3)
    row("peak extra memory, MiB", lambda result: result["peak_extra_mib"])
    row("keys and values, MiB", lambda result: result["cache_mib"])
    table.add_section()
    row("once per model: QR of a layer's W_o, ms", lambda result: result["factor_seconds"] * 1e3)
    Console().print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one_layer", description=__doc__)
    parser.add_argument("--positions", type=int, nargs="+", default=[4096, 16_384])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print numbers for a program")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = [measure(size, options.dtype, options.repeats) for size in options.positions]
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        show(results)


if __name__ == "__main__":
    main()
