"""Checks of the kernels on this device at real shapes, before any of them is timed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch

import kvpolicy
import kvpolicy_kernels
from benchmarks.bench import Bench, Cell
from benchmarks.evictions import kept_positions
from benchmarks.gpu.choice import kernels, recorded, under, what_runs
from benchmarks.gpu.operations import OPERATIONS, Operation, difference
from benchmarks.gpu.recipes import RECIPES, shown_layer
from benchmarks.gpu.scale import Scale
from benchmarks.layers import Source
from benchmarks.timing import release

DTYPES = (torch.float32, torch.bfloat16)
IN_PLACE_REPEATS = 200
OVERLAP = {torch.float32: 0.999, torch.bfloat16: 0.95}
"""Kernels and reference round bfloat16 scores differently, so some positions at the cut differ."""


LATER = frozenset({"projected_norms"})
"""Operations that no recipe of the plan runs: they are checked when operations are timed."""


def cells() -> Iterator[Cell[Scale]]:
    """Give the operations of the first recipes that are measured, then whole evictions by them."""
    yield from _operations(later=False)
    yield Cell(key="checks/compact_in_place", measure=check_in_place)
    yield from _evictions(RECIPES[:2])


def later_cells() -> Iterator[Cell[Scale]]:
    """Give the other recipes, and all other operations."""
    yield from _evictions(RECIPES[2:])
    yield from _operations(later=True)


def _evictions(names: Sequence[str]) -> Iterator[Cell[Scale]]:
    for name in names:
        yield Cell(key=f"checks/evict_{name}", measure=partial(check_eviction, name=name))


def _operations(*, later: bool) -> Iterator[Cell[Scale]]:
    for operation in OPERATIONS:
        if (operation.name in LATER) is later:
            measure = partial(check_operation, operation=operation)
            yield Cell(key=f"checks/{operation.name}", measure=measure, seconds=15)


def check_operation(bench: Bench[Scale], operation: Operation) -> None:
    """Compare a kernel with the reference at an odd and at the greatest length."""
    lengths = bench.scale.lengths
    for length in (lengths[1] - 3, min(operation.longest, lengths[-1])):
        for dtype in DTYPES:
            with torch.no_grad():
                check_at(bench, operation, length, dtype)
            release()


def check_at(bench: Bench[Scale], operation: Operation, length: int, dtype: torch.dtype) -> None:
    """Compare one kernel with the reference on the same inputs."""
    call = operation.prepare(Source(bench.scale, length, dtype, bench.device))
    ran = what_runs(operation.room, call, bench.device)
    with kernels("auto"):
        result = call()
    with kernels("reference"):
        error = difference(result, call())
    tolerance = operation.tolerance[dtype]
    bench.note(
        "checks",
        operation.name,
        error <= tolerance,
        "bool",
        against="reference",
        dtype=dtype,
        shape={"L": length},
        settings={"error": error, "tolerance": tolerance, "ran": ran},
    )


@torch.no_grad()
def check_in_place(bench: Bench[Scale]) -> None:
    """Compact in place many times: programs that race would not give the same rows each time."""
    length = bench.scale.lengths[1]
    source = Source(bench.scale, length, bench.scale.dtype, bench.device)
    keys, values, rows = source.rows(), source.rows(), source.kept(length // 2)
    with kernels("reference"):
        expected = kvpolicy_kernels.gather_kv(keys, values, rows)
    right, repeats = 0, 3 if bench.scale.toy else IN_PLACE_REPEATS
    for _ in range(repeats):
        kept = keys.clone(), values.clone()
        kvpolicy_kernels.compact_in_place(*kept, rows)
        right += difference([each[:, :, : length // 2] for each in kept], expected) == 0
    bench.note(
        "checks",
        "compact_in_place",
        right == repeats,
        "bool",
        against="gather_kv",
        shape={"L": length, "K": length // 2},
        repeats=repeats,
        settings={"right": right},
    )


def check_eviction(bench: Bench[Scale], name: str) -> None:
    """Compare the positions that a recipe keeps with kernels and without."""
    policy = kvpolicy.recipe(name, budget=bench.scale.budget)
    for dtype in DTYPES:
        length = bench.scale.lengths[1]
        scale = bench.scale
        layer = shown_layer(policy, scale, length, dtype, bench.device)
        with recorded() as ran:
            kept_positions(policy, layer)
        selected = {
            choice: under(choice, partial(kept_positions, policy, layer))()
            for choice in ("auto", "reference")
        }
        kept = torch.zeros(*layer.keys.shape[:3], 2, dtype=torch.bool, device=bench.device)
        for at, indices in enumerate(selected.values()):
            kept[..., at].scatter_(-1, indices, True)
        overlap = float(kept.all(-1).sum() / kept[..., 1].sum())
        bench.note(
            "checks",
            f"evict_{name}",
            overlap >= OVERLAP[dtype],
            "bool",
            against="reference",
            dtype=dtype,
            shape={"L": length, "K": bench.scale.budget},
            settings={"overlap": overlap, "least": OVERLAP[dtype], "ran": dict(ran)},
        )
