"""The part of the page on CPUs: targets, one layer, stages, growth, decoding and whole prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.cpu.growth import growth
from benchmarks.cpu.targets import MEMORY, PROMPT, STEP, TIME, amount, costs_by_length, judged
from benchmarks.page.markdown import table
from benchmarks.rows import Row

PICTURE = "cost-growth.png"


def sections(rows: Sequence[Row]) -> Iterator[str]:
    """Give the paragraphs in order."""
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
        f"Measured by `make bench` on {'; '.join(machines)}; {versions}. All contenders of a "
        "comparison take turns in one process, round by round; the fastest round counts, for whole "
        "decode steps the median. Memory is what a fresh process needs at its peak on top of the "
        "layer; in the table of one layer, the most that ours took in any of three. Speed is told "
        "only if the operation's check was green in the same process."
    )


def _failures(rows: Sequence[Row]) -> Iterator[str]:
    failed = [row for row in rows if row.failure]
    if failed:
        yield "**Not told:**"
        yield "\n".join(f"- {row.name}, {row.variant}: {row.failure}" for row in failed)


def _targets(rows: Sequence[Row]) -> str:
    cells = [
        [
            target.title,
            target.bound,
            "" if row is None or row.value is None else amount(row.value, row.unit),
            judgement,
        ]
        for target, row, judgement in judged(rows)
    ]
    return table(["what", "target", "measured", ""], cells)


def _one_layer(rows: Sequence[Row]) -> Iterator[str]:
    mine = [row for row in rows if row.benchmark == "cpu.layer" and row.against is None]
    if not any(row.value for row in mine):
        return
    yield "### One layer"
    yield (
        "A layer of Llama-3.1-8B's shape (H 32, N 8, D 128), scored, smoothed, selected and "
        "gathered to K positions. `authors` is our re-implementation of the authors' algorithm of "
        "ReST-KV on keys that were repeated before (`benchmarks/authors_restkv.py`), `kvpress` "
        "that of kvpress' steps of SnapKV (`benchmarks/kvpress_snapkv.py`)."
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
        f"One layer, float32, {lengths[0]:,} to {lengths[-1]:,} positions. Least squares: "
        "cost = slope x S + intercept; and the exponent p of cost ~ S^p, which is 1 for linear "
        "growth and less where a fixed cost shows."
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
        "One token's attention in one layer of that shape, all through the same folded path. Where "
        "one layer is asked again and again, what it holds stays in the processor's cache; where "
        "layers take turns, as in a model, it comes from memory like the long one, and a ratio of "
        "32 is all there is in the bytes."
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
        f"N {shape['N']}, D {shape['D']} and random weights, {shape['K']:,} positions held by all; "
        "'no groups' has a key/value head for every query head. Uneven heads hold half and three "
        "halves of that in turn. The recipes at the end evict at every token, and are compared "
        "with one that never does."
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
        f"Median microseconds for each token and layer, on a model so small that little but Python "
        f"is left ({mine[0].shape['K']} positions held). `attend` is the attention of uneven "
        "heads, which takes the place of the model's own."
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
        f"Peak resident memory of reading {shape['L']:,} tokens with a Llama of "
        f"{shape['layers']} layers, N {shape['N']}, D {shape['D']}, on top of the model, each in a "
        f"fresh process.{size}"
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
