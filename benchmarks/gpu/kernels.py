"""Every kernel against its reference, from short prompts to long ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch

import kvpolicy_kernels
from benchmarks.gpu.bench import Bench, Cell, under, what_runs
from benchmarks.gpu.inputs import Source
from benchmarks.gpu.operations import OPERATIONS, Operation
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.timing import Timing, extra_bytes, interleaved, ratio


def cells(scale: Scale, lengths: Sequence[int]) -> Iterator[Cell]:
    """Time every operation at each length that it is meant for."""
    for length in lengths:
        for operation in OPERATIONS:
            if length <= max(operation.longest, scale.lengths[0]):
                measure = partial(time_operation, operation=operation, length=length)
                yield Cell(key=f"kernels/{operation.name}/{length}", measure=measure, seconds=2)


def compaction_cells(scale: Scale) -> Iterator[Cell]:
    """Time the copy of what is kept: of a usual budget, and of enough to fill the bandwidth."""
    for kept in (scale.budget, scale.bulk):
        measure = partial(time_compaction, kept=kept)
        yield Cell(key=f"kernels/compaction/{kept}", measure=measure)


@torch.no_grad()
def time_operation(bench: Bench, operation: Operation, length: int) -> None:
    """Time kernel, reference and what else it is compared with, in turns."""
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
            "kernels",
            operation.name,
            timing,
            "s",
            variant=variant,
            shape={"L": length},
            settings=settings,
            failure=bench.red(operation.name) if ours else None,
        )


def shares(
    bench: Bench, timing: Timing | str, bytes_moved: int, length: int
) -> dict[str, float | None]:
    """Return a time as shares of what the device can do and of one layer's prefill."""
    found: dict[str, float | None] = {"bytes_moved": bytes_moved}
    if not isinstance(timing, str):
        copy, layer = bench.copy_rate, bench.prefill_layer_seconds(length)
        found["share_of_copy"] = copy and bytes_moved / timing.median / 1e9 / copy
        found["share_of_prefill_layer"] = layer and timing.median / layer
    return found


@torch.no_grad()
def time_compaction(bench: Bench, kept: int) -> None:
    """Compare the gather with a plain copy of as many bytes, and with PyTorch's own gathers."""
    scale, length = bench.scale, 4 * kept
    source = Source(scale, length, scale.dtype, bench.device)
    keys, values, rows = source.rows(), source.rows(), source.kept(kept)
    whole = [keys[:, :, :kept].contiguous(), values[:, :, :kept].contiguous()]
    targets = [torch.empty_like(each) for each in whole]
    spread = rows[..., None].expand(-1, -1, -1, scale.dim)
    heads = torch.arange(scale.kv_heads, device=bench.device)[:, None]
    flat = (rows + heads * length).flatten()

    def copy() -> None:
        for target, each in zip(targets, whole, strict=True):
            target.copy_(each)

    timings = interleaved(
        {
            "copy_": copy,
            "auto": under("auto", lambda: kvpolicy_kernels.gather_kv(keys, values, rows)),
            "reference": under("reference", lambda: kvpolicy_kernels.gather_kv(keys, values, rows)),
            "torch.gather": lambda: (keys.gather(2, spread), values.gather(2, spread)),
            "index_select": lambda: [
                each.flatten(0, 2).index_select(0, flat) for each in (keys, values)
            ],
        },
        bench.device,
        repeats=2 * scale.repeats,
    )
    moved = 2 * kept * scale.kv_bytes
    for variant, timing in timings.items():
        rate = moved / timing.median / 1e9 if isinstance(timing, Timing) else timing
        bench.note(
            "kernels",
            "compaction",
            rate,
            "GB/s",
            variant=variant,
            against="copy_",
            timing=timing,
            shape={"L": length, "K": kept},
            settings={"bytes_moved": moved},
            failure=bench.red("gather_kv") if variant == "auto" else None,
        )
    bench.note(
        "kernels",
        "compaction over copy_",
        ratio(timings["copy_"], timings["auto"]),
        "ratio",
        variant="auto",
        against="copy_",
        timing=timings["auto"],
        shape={"L": length, "K": kept},
        failure=bench.red("gather_kv"),
    )
