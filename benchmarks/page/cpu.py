"""The page's part on CPUs: targets, one layer, stages, growth, decoding, whole prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.cpu.targets import (
    MEMORY,
    PROMPT,
    STEP,
    TARGETS,
    TIME,
    costs_by_length,
    with_exponents,
)
from benchmarks.growth import growth
from benchmarks.page.markdown import table
from benchmarks.rows import Row
from benchmarks.targets import amount, verdicts
from kvpolicy.exactness.markdown import escaped

PICTURE = "cost-growth.png"


def sections(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the paragraphs."""
    found = [row for row in rows if row.benchmark.startswith("cpu.")]
    yield "## On a CPU"
    if not found:
        yield "Nothing has been measured yet: `make bench` does."
        return
    yield _circumstances(found)
    yield from _failures(found)
    yield "### Targets"
    yield _targets(found)
    yield from _one_layer(found)
    yield from _stages(found)
    yield from _growth(found)
    yield from _decoding(found)
    yield from _parts(found)
    yield from _prompts(found)


def _circumstances(rows: Sequence[Row]) -> str:
    machines = sorted({row.machine for row in rows})
    versions = ", ".join(f"{name} {found}" for name, found in sorted(rows[0].versions.items()))
    return (
        f"Measured by `make bench` on {'; '.join(machines)}; {versions}. Entrants that are "
        "compared run in turns in one process. The fastest repeat counts; for whole decode steps "
        "the median counts. Memory is the peak of a new process, without the layer itself. In the "
        "table of one layer our memory is the largest of three processes. An operation has a speed "
        "only if its check passed in the same process."
    )


def _failures(rows: Sequence[Row]) -> Iterator[str]:
    failed = [row for row in rows if row.failure]
    if failed:
        yield "**Not measured:**"
        lines = (f"{row.name}, {row.variant}: {row.failure}" for row in failed)
        yield "\n".join(f"- {escaped(line)}" for line in lines)


def _targets(rows: Sequence[Row]) -> str:
    cells = [
        [each.target.title, each.target.bound, each.measured, each.judgement]
        for each in verdicts(TARGETS, with_exponents(rows))
    ]
    return table(["what", "target", "measured", ""], cells)


def _one_layer(rows: Sequence[Row]) -> Iterator[str]:
    mine = [row for row in rows if row.benchmark == "cpu.layer" and row.against is None]
    if not any(row.value for row in mine):
        return
    yield "### One layer"
    yield (
        "A layer of the shape of Llama-3.1-8B (H 32, N 8, D 128) is scored, smoothed, selected "
        "and gathered to K positions. `authors` is the algorithm of the authors' code of ReST-KV, "
        "written again for this comparison (`benchmarks/peers/authors_restkv.py`), without the "
        "time to repeat keys. `kvpress` has the steps of kvpress' SnapKV "
        "(`benchmarks/peers/kvpress_snapkv.py`)."
    )
    memory = {_key(row): row for row in mine if row.name == MEMORY}
    cells = [
        [
            str(row.variant), f"{row.shape['S']:,}", str(row.dtype), f"{row.shape['W']}",
            f"{row.shape['K']:,}", amount(row.value or 0, "s"),
            amount(memory[_key(row)].value or 0, "MiB"),
        ]
        for row in mine
        if row.name == TIME and row.value is not None
    ]  # fmt: skip
    yield table(["who", "S", "dtype", "W", "K", "time", "extra memory"], cells)


def _key(row: Row) -> tuple[object, ...]:
    return row.variant, row.dtype, *row.shape.values()


def _stages(rows: Sequence[Row]) -> Iterator[str]:
    mine = [row for row in rows if row.benchmark == "cpu.stages" and row.value is not None]
    if not mine:
        return
    yield "### Where the time of an eviction goes"
    stages = list(dict.fromkeys(row.name for row in mine))
    columns = dict.fromkeys((row.variant, row.shape["S"], row.dtype) for row in mine)
    cells = []
    for variant, positions, dtype in columns:
        seconds = {
            row.name: row.value or 0.0
            for row in mine
            if (row.variant, row.shape["S"], row.dtype) == (variant, positions, dtype)
        }
        total = sum(seconds.values())
        shares = [f"{seconds[stage] / total:.1%}" for stage in stages]
        cells.append([f"{variant}, {positions:,}, {dtype}", amount(total, "s"), *shares])
    yield table(["recipe, S, dtype", "all", *stages], cells)


def _growth(rows: Sequence[Row]) -> Iterator[str]:
    costs = costs_by_length(rows)
    if not costs:
        return
    lengths = sorted({length for points in costs.values() for length in points})
    yield "### How cost grows with the prompt"
    yield (
        f"One layer, float32, {lengths[0]:,} to {lengths[-1]:,} positions, fitted by least "
        "squares: cost = slope x S + intercept, and the exponent p of cost ~ S^p. p is 1 for "
        "linear growth; a fixed cost makes it smaller."
    )
    yield f"![Time and memory of evicting a layer by the length of the prompt]({PICTURE})"
    headings = ["cost", "slope", "intercept", "R²", "exponent", "its R²"]
    yield table(headings, [_fit(name, unit, points) for (name, unit), points in costs.items()])


def _fit(name: str, unit: str, points: dict[int, float]) -> list[str]:
    found = growth(points)
    slope, intercept = found.line.slope, found.line.intercept
    if unit == "s":
        words = ["time", f"{1e9 * slope:.0f} ns a position", f"{1000 * intercept:.1f} ms"]
    else:
        words = ["extra memory", f"{2**20 * slope:.0f} B a position", f"{intercept:.1f} MiB"]
    return [
        f"{name}, {words[0]}",
        *words[1:],
        f"{found.line.r_squared:.4f}",
        f"{found.exponent.slope:.2f}",
        f"{found.exponent.r_squared:.4f}",
    ]


def _decoding(rows: Sequence[Row]) -> Iterator[str]:
    mine = [row for row in rows if row.benchmark == "cpu.decode" and row.value is not None]
    if not mine:
        return
    yield "### Decoding"
    yield (
        "The attention of one token in one layer of that shape. If only one layer attends, its "
        "keys stay in the processor's cache. If several layers attend in turn, as in a model, keys "
        "are read from memory, like those of the long cache. The long cache has 32 times the bytes."
    )
    attention = [row for row in mine if row.name == "time of decode attention"]
    yield table(
        ["held", "dtype", "time"],
        [[str(row.variant), str(row.dtype), amount(row.value or 0, "s")] for row in attention],
    )
    steps = [row for row in mine if row.name == STEP and row.unit == "ratio"]
    if not steps:
        return
    shape = steps[0].shape
    yield (
        f"Whole steps of a Llama of {shape['layers']} layers with M {shape['M']}, H {shape['H']}, "
        f"N {shape['N']}, D {shape['D']} and random weights. All caches hold {shape['K']:,} "
        "positions. 'no groups' has a key/value head for each query head. Uneven heads hold half "
        "and three halves of the positions, in turn. The recipes at the end evict at every token; "
        "they are compared with a recipe that never evicts while decoding."
    )
    seconds = {(row.variant, row.shape["N"]): row for row in mine if row.unit == "s"}
    cells = [
        [
            str(row.variant), str(row.against),
            amount(seconds[row.variant, row.shape["N"]].median_seconds or 0, "s"),
            f"{row.value:.3f}x",
        ]
        for row in steps
    ]  # fmt: skip
    yield table(["cache", "against", "step", "ratio"], cells)


def _parts(rows: Sequence[Row]) -> Iterator[str]:
    mine = [row for row in rows if row.benchmark == "cpu.parts" and row.value is not None]
    if not mine:
        return
    yield "### What a cache adds to a layer of a decode step"
    yield (
        f"Median microseconds for each token and layer, with {mine[0].shape['K']} positions held, "
        "in a model so small that Python takes most of the time. `attend` is the attention over "
        "uneven heads, which replaces the attention of the model."
    )
    parts = list(dict.fromkeys(row.name for row in mine))
    cells = []
    for variant in dict.fromkeys(row.variant for row in mine):
        seconds = {row.name: row.value or 0.0 for row in mine if row.variant == variant}
        each = [f"{1e6 * seconds[part]:.0f}" if part in seconds else "" for part in parts]
        cells.append([str(variant), *each, f"{1e6 * sum(seconds.values()):.0f}"])
    yield table(["cache", *parts, "all"], cells)


def _prompts(rows: Sequence[Row]) -> Iterator[str]:
    mine = [row for row in rows if row.benchmark == "cpu.prompts" and row.value is not None]
    if not mine:
        return
    shape = mine[0].shape
    full = next((row for row in mine if row.name != PROMPT), None)
    size = "" if full is None else f" Its keys and values are {amount(full.value or 0, 'MiB')}."
    yield "### Whole prompts"
    yield (
        f"Peak resident memory, beside the model, of reading {shape['L']:,} tokens with a Llama of "
        f"{shape['layers']} layers, N {shape['N']}, D {shape['D']}; each in a fresh process.{size}"
    )
    peaks = [row for row in mine if row.name == PROMPT]
    cells = [
        [
            f"{row.variant}{' against ' + row.against if row.against else ''}",
            amount(row.value or 0, row.unit),
        ]
        for row in peaks
    ]
    yield table(["cache", "peak"], cells)
