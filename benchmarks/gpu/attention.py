"""Attention of one decoded token in one layer: to all that was read, and to what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.bench import Bench, Cell
from benchmarks.gpu.scale import Scale
from benchmarks.timing import Timing, interleaved, ratio


def cells(shapes: Sequence[tuple[int, int]]) -> Iterator[Cell[Scale]]:
    """Give a cell for each (rows, tokens read before)."""
    for batch, length in shapes:
        measure = partial(time_attention, batch=batch, length=length)
        yield Cell(key=f"decode/attention/{batch}x{length}", measure=measure)


def forms(bench: Bench[Scale], batch: int, held: int) -> dict[str, Callable[[], Any]]:
    """Return attention to so many tokens: with grouped heads, and with groups as rows."""
    scale = bench.scale
    shape = (batch, scale.kv_heads, held, scale.dim)
    keys, values = (torch.randn(shape, dtype=scale.dtype, device=bench.device) for _ in range(2))
    queries = keys.new_ones(batch, scale.heads, 1, scale.dim)
    folded = queries.view(batch, scale.kv_heads, -1, scale.dim)
    attend = F.scaled_dot_product_attention
    return {
        "grouped": partial(attend, queries, keys, values, enable_gqa=True),
        "folded": partial(attend, folded, keys, values),
    }


@torch.no_grad()
def time_attention(bench: Bench[Scale], batch: int, length: int) -> None:
    """Time the attention of one layer, full and evicted; compare each in its faster form."""
    held = {"full": length, "evicted": bench.scale.budget}
    timings = interleaved(
        {
            f"{title}, {form}": call
            for title, count in held.items()
            for form, call in forms(bench, batch, count).items()
        },
        bench.device,
        repeats=bench.scale.repeats,
        limit=4.0,
    )
    sizes = {"B": batch, "L": length, "K": bench.scale.budget}
    for variant, timing in timings.items():
        bench.note("decode", "attention", timing, "s", variant=variant, shape=sizes)
    full, evicted = (faster(timings, title) for title in held)
    bench.note(
        "decode",
        "attention ratio",
        ratio(full, evicted),
        "ratio",
        variant="full",
        against="evicted, each in its faster form",
        timing=full,
        shape=sizes,
    )


def faster(timings: dict[str, Timing | str], title: str) -> Timing | str:
    """Return the faster of the timings whose names begin with a title."""
    return min(
        (timing for name, timing in timings.items() if name.startswith(title)),
        key=lambda timing: torch.inf if isinstance(timing, str) else timing.median,
    )
