"""The page's part on GPUs: what was measured on them, and the bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from benchmarks import bounds
from benchmarks.bounds import GB, H200, LLAMA, MISTRAL
from benchmarks.page.markdown import length, table
from benchmarks.rows import Row
from benchmarks.targets import amount

LENGTHS = tuple(2**power for power in range(12, 18))
KEPT = 1024
CHUNK = 4096
DENSITIES = (0.15, 0.05)


def sections(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the paragraphs."""
    found = [row for row in rows if row.benchmark.startswith("gpu.") and row.device != "cpu"]
    yield "## On a GPU"
    if found:
        yield "Measured by `python -m benchmarks.gpu`."
        yield from _measured(found)
    else:
        yield (
            "**Nothing has been measured on a GPU yet.** `python -m benchmarks.gpu` measures "
            "kernels, evictions, whole prompts, decoding and `generate`, the most valuable first. "
            "It ends after nine minutes, and `--resume ROWS` goes on from the rows of such a call. "
            "On a machine without an index `benchmarks/gpu/start dist/*.whl -- --output ROWS` "
            "installs the wheel that `make dist` builds, and measures. Set `TRITON_CACHE_DIR` to a "
            "folder that is carried to the next call, and kernels are compiled once. Until rows "
            "are here this page has only bounds."
        )
    yield from _bounds()


def _measured(rows: Sequence[Row]) -> Iterator[str]:
    for (device, benchmark), group in groupby(rows, lambda row: (row.device, row.benchmark)):
        yield f"### {benchmark}, {device}"
        yield table(["what", "sizes", "value"], [_cells(row) for row in group])


def _cells(row: Row) -> list[str]:
    against = f" against {row.against}" if row.against else ""
    sizes = [f"{letter} {size:,}" for letter, size in row.shape.items()]
    value = row.failure or "" if row.value is None else _value(row.value, row.unit)
    what = f"{row.name}: {row.variant}{against}" if row.variant else f"{row.name}{against}"
    return [what, ", ".join([*sizes, *([row.dtype] if row.dtype else [])]), value]


def _value(value: float, unit: str) -> str:
    if unit == "bool":
        return "yes" if value else "no"
    known = unit in ("s", "MiB", "ratio")
    return amount(value, unit) if known else f"{value:.4g} {unit}"


def _bounds() -> Iterator[str]:
    yield "### Bounds"
    yield (
        f"`benchmarks/bounds.py` computes bounds from shapes, in bfloat16. It assumes that an "
        f"{H200.name} reaches {H200.flops / 1e12:.0f} TFLOP/s and {H200.bandwidth / 1e12:.1f} "
        f"TB/s. {LLAMA.name} and {MISTRAL.name} have the same layers and different vocabularies."
    )
    yield (
        "A prompt of one sequence. 'prefill' is the time of its operations at peak speed, and `f` "
        "is the share of attention. 'scores' is the share of operations that ReST-KV's exact "
        "scores add. Sparse attention of density rho makes a prefill at most 1 / (1 - f + f rho) "
        "times as fast."
    )
    yield _prompts()
    yield (
        f"A decode step: the time to read all weights and the full cache at full bandwidth, and "
        f"how much faster a step is with a cache of {KEPT:,} positions."
    )
    yield _steps()
    yield (
        "Memory at the peak of a prompt of one sequence, in GB: weights, keys and values, and the "
        f"temporaries of the largest layer. 'evicted': layer by layer, to {KEPT:,} positions. 'and "
        f"in chunks': the MLP, norms and rotary embedding also read {CHUNK:,} tokens at a time."
    )
    yield _peaks()
    moved = 2 * KEPT * LLAMA.kv_bytes / LLAMA.layers / 1e6
    seconds = bounds.gather_seconds(LLAMA, KEPT, H200)
    yield (
        f"Compacting one layer to {KEPT:,} positions reads and writes {moved:.1f} MB: "
        f"{amount(seconds, 's')} at least."
    )


def _prompts() -> str:
    rows = []
    for tokens in LENGTHS:
        share = bounds.attention_share(LLAMA, tokens)
        sparse = [f"{bounds.sparse_bound(share, density):.1f}x" for density in DENSITIES]
        seconds = bounds.prefill_seconds(LLAMA, tokens, H200)
        scoring = f"{bounds.scoring_share(LLAMA, tokens):.2%}"
        rows.append([length(tokens), f"{seconds:.3f} s", f"{share:.0%}", scoring, *sparse])
    headings = ["tokens", "prefill", "f", "scores", *(f"rho {each}" for each in DENSITIES)]
    return table(headings, rows)


def _steps() -> str:
    rows = []
    for tokens in LENGTHS:
        cells = [length(tokens)]
        for shape in (LLAMA, MISTRAL):
            for batch in (1, 8):
                full = bounds.decode_seconds(shape, tokens, H200, batch=batch)
                evicted = bounds.decode_seconds(shape, KEPT, H200, batch=batch)
                cells.append(f"{1000 * full:.2f} ms, {full / evicted:.2f}x")
        rows.append(cells)
    headings = [f"{shape.name}, B = {batch}" for shape in (LLAMA, MISTRAL) for batch in (1, 8)]
    return table(["held", *headings], rows)


def _peaks() -> str:
    rows = []
    for tokens in LENGTHS:
        cells = [length(tokens)]
        for shape in (LLAMA, MISTRAL):
            full = bounds.peak_bytes(shape, tokens)
            evicted = bounds.peak_bytes(shape, tokens, kept=KEPT)
            chunked = bounds.peak_bytes(shape, tokens, kept=KEPT, mlp_chunk=CHUNK)
            cells += [
                f"{full / GB:.1f}",
                f"{evicted / GB:.1f} ({evicted / full:.2f}x)",
                f"{chunked / GB:.1f} ({chunked / full:.2f}x)",
            ]
        rows.append(cells)
    kinds = ("full", "evicted", "and in chunks")
    headings = [f"{shape.name}, {kind}" for shape in (LLAMA, MISTRAL) for kind in kinds]
    return table(["tokens", *headings], rows)
