"""The ceilings of this device: bandwidth, matrix products, and the cost of a launch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.bench import Bench, Cell
from benchmarks.gpu.graphs import captured
from benchmarks.gpu.scale import Scale
from benchmarks.timing import MIB, Timing, interleaved

LAUNCHES = 200


def cells() -> Iterator[Cell[Scale]]:
    """Give the three ceilings."""
    yield Cell(key="ceilings/copy", measure=copy)
    yield Cell(key="ceilings/matrix_product", measure=matrix_product)
    yield Cell(key="ceilings/launch", measure=launch)


def copy(bench: Bench[Scale]) -> None:
    """Copy a block of the size of a small cache, and a large one."""
    sizes = (1, 4) if bench.scale.toy else (64, 1024)
    for size in sizes:
        source = torch.empty(size * MIB, dtype=torch.uint8, device=bench.device).zero_()
        target = torch.empty_like(source)
        calls = {"copy_": lambda target=target, source=source: target.copy_(source)}
        timing = interleaved(calls, bench.device, repeats=bench.scale.repeats)["copy_"]
        moved = 2 * size * MIB
        bench.note(
            "ceilings",
            "copy_",
            moved / timing.median / 1e9 if isinstance(timing, Timing) else timing,
            "GB/s",
            timing=timing,
            dtype=torch.uint8,
            settings={"bytes_moved": moved},
        )


def matrix_product(bench: Bench[Scale]) -> None:
    """Multiply two square matrices."""
    size = 128 if bench.scale.toy else 8192
    left, right = (
        torch.randn(size, size, dtype=bench.scale.dtype, device=bench.device) for _ in range(2)
    )
    calls = {"product": lambda: left @ right}
    timing = interleaved(calls, bench.device, repeats=bench.scale.repeats)["product"]
    bench.note(
        "ceilings",
        "matrix product",
        2 * size**3 / timing.median / 1e12 if isinstance(timing, Timing) else timing,
        "TFLOP/s",
        timing=timing,
        shape={"rows": size, "inner": size, "columns": size},
    )


def launch(bench: Bench[Scale]) -> None:
    """Run the smallest kernel many times: launched one by one, and as one CUDA graph."""
    one = torch.zeros(1, device=bench.device)

    def many() -> None:
        for _ in range(LAUNCHES):
            one.add_(1)

    calls = {"eager": many, "CUDA graph": captured(many, bench.device)}
    timings = interleaved(calls, bench.device, repeats=bench.scale.repeats)
    for variant, timing in timings.items():
        if not isinstance(timing, str):
            # Launched one by one, the host takes the time, whatever head start it is given.
            each = timing.host if variant == "eager" else timing.median
        bench.note(
            "ceilings",
            "launch",
            timing if isinstance(timing, str) else each / LAUNCHES,
            "s",
            variant=variant,
            timing=timing,
            dtype=torch.float32,
            settings={"launches": LAUNCHES},
        )
