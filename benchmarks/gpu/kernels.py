"""Each operation of kvpolicy_kernels, kernel beside reference, from short prompts to long ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

import kvpolicy_kernels
from benchmarks.bench import Bench, Cell
from benchmarks.gpu.choice import under, what_runs
from benchmarks.gpu.operations import OPERATIONS, Operation
from benchmarks.gpu.scale import Scale
from benchmarks.layers import Source
from benchmarks.memory import extra_bytes
from benchmarks.timing import Timing, interleaved, ratio


def cells(scale: Scale, lengths: Sequence[int]) -> Iterator[Cell[Scale]]:
    """Give each operation at each length that it is made for."""
    for length in lengths:
        for operation in OPERATIONS:
            if length <= max(operation.longest, scale.lengths[0]):
                measure = partial(time_operation, operation=operation, length=length)
                yield Cell(key=f"kernels/{operation.name}/{length}", measure=measure, seconds=2)


def compaction_cells(scale: Scale) -> Iterator[Cell[Scale]]:
    """Give the copy of what is kept: of a usual budget, and of enough to fill the bandwidth."""
    for kept in (scale.budget, scale.bulk):
        measure = partial(time_compaction, kept=kept)
        yield Cell(key=f"kernels/compaction/{kept}", measure=measure)


@torch.no_grad()
def time_operation(bench: Bench[Scale], operation: Operation, length: int) -> None:
    """Time kernel, reference and what else the operation is compared with, in turns."""
    source = Source(bench.scale, length, bench.scale.dtype, bench.device)
    call = operation.prepare(source)
    ran = what_runs(operation.room, call, bench.device)
    calls = {choice: under(choice, call) for choice in ("auto", "reference")}
    calls |= operation.against(source)
    timings = interleaved(calls, bench.device, repeats=bench.scale.repeats, limit=2.0)
    extra = extra_bytes(calls["auto"], bench.device)
    for variant, timing in timings.items():
        ours = variant == "auto"
        settings = shares(bench, timing, operation.bytes_moved(source), length)
        if ours:
            settings |= {"ran": ran, "extra_bytes": None if isinstance(extra, str) else extra}
        bench.note(
            "kernels", operation.name, timing, "s", variant=variant, shape={"L": length},
            settings=settings, failure=bench.red(operation.name) if ours else None,
        )  # fmt: skip


def shares(
    bench: Bench[Scale], timing: Timing | str, bytes_moved: int, length: int
) -> dict[str, Any]:
    """Return a time as shares: of the bandwidth of a copy, and of one layer's prefill."""
    found: dict[str, Any] = {"bytes_moved": bytes_moved}
    if not isinstance(timing, str):
        copy, layer = copy_rate(bench), prefill_layer_seconds(bench, length)
        found["share_of_copy"] = copy and bytes_moved / timing.median / 1e9 / copy
        found["share_of_prefill_layer"] = layer and timing.median / layer
    return found


def copy_rate(bench: Bench[Scale]) -> float | None:
    """Return the GB/s of `copy_` on this device, if they were measured."""
    rates = [
        row.value
        for row in bench.known
        if (row.benchmark, row.name) == ("gpu.ceilings", "copy_") and row.value
    ]
    return max(rates, default=None)


def prefill_layer_seconds(bench: Bench[Scale], length: int) -> float | None:
    """Return how long one layer takes to read a prompt, if that was measured."""
    for row in bench.known:
        if row.name == "prefill layer" and row.shape["L"] == length:
            return row.value
    return None


@torch.no_grad()
def time_compaction(bench: Bench[Scale], kept: int) -> None:
    """Compare the gather with a plain copy of as many bytes, and with PyTorch's own gathers."""
    scale, length = bench.scale, 4 * kept
    source = Source(scale, length, scale.dtype, bench.device)
    keys, values, rows = source.rows(), source.rows(), source.kept(kept)
    whole = [keys[:, :, :kept].contiguous(), values[:, :, :kept].contiguous()]
    targets = [torch.empty_like(each) for each in whole]
    spread = rows[..., None].expand(-1, -1, -1, scale.dim)
    heads = torch.arange(scale.kv_heads, device=bench.device)[:, None]
    flat = (rows + heads * length).flatten()
    gather = partial(kvpolicy_kernels.gather_kv, keys, values, rows)

    def copy() -> None:
        for target, each in zip(targets, whole, strict=True):
            target.copy_(each)

    timings = interleaved(
        {
            "copy_": copy,
            "auto": under("auto", gather),
            "reference": under("reference", gather),
            "torch.gather": lambda: (keys.gather(2, spread), values.gather(2, spread)),
            "index_select": lambda: [
                each.flatten(0, 2).index_select(0, flat) for each in (keys, values)
            ],
        },
        bench.device,
        repeats=2 * scale.repeats,
    )
    moved, red = 2 * kept * scale.kv_bytes, bench.red("gather_kv")
    note = partial(bench.note, "kernels", against="copy_", shape={"L": length, "K": kept})
    for variant, timing in timings.items():
        rate = moved / timing.median / 1e9 if isinstance(timing, Timing) else timing
        note(
            "compaction", rate, "GB/s", variant=variant, timing=timing,
            settings={"bytes_moved": moved}, failure=red if variant == "auto" else None,
        )  # fmt: skip
    mine, base = timings["auto"], timings["copy_"]
    note(
        "compaction over copy_",
        ratio(base, mine),
        "ratio",
        variant="auto",
        timing=mine,
        failure=red,
    )
