"""The page's part on the host of a GPU: launches, waits and copies of each recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.page.markdown import table
from benchmarks.rows import Row, read
from benchmarks.waits.table import COLUMNS, LENGTH_HEADER, cells, length_cells

BEFORE = Path(__file__).parents[2] / "docs" / "results" / "waits-before.jsonl"
"""The counts before faults were read later."""


def sections(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the paragraphs."""
    found = [row for row in rows if row.benchmark in ("waits.prompt", "waits.token")]
    if not found:
        return
    shape, versions = found[0].shape, found[0].versions
    yield "## What the host of a GPU does"
    yield (
        "Counted by `python -m benchmarks.waits --output benchmarks/results/waits.jsonl` on "
        f"{found[0].settings['date']}, without "
        "a GPU: tensors that hold numbers on the CPU say that they are on one. A launch is an "
        "operation that runs on the GPU, a wait is a read of its numbers, and a copy takes "
        "pageable memory there and waits, too. Cells have launches / waits / copies of one layer; "
        "behind a plus are those of a forward beside its layers. Operations of the model itself, "
        f"its rotary embedding included, are not counted. A prompt has {shape['L']} tokens and the "
        f"budget is {shape['K']}. `unequal rows`: one of them has padding; `padded alike`: all "
        "have. Forwards are called by hand, so the mask of a padded token is looked at, which is "
        "the wait and the copy beside its layers; `generate` looks at its first mask only. "
        f"torch {versions['torch']}, transformers {versions['transformers']}."
    )
    yield table(["recipe", *(f"{phase}, {batch}" for phase, batch in COLUMNS)], cells(found))
    yield (
        "One row (B = 1) beside the counts before faults were read one forward later "
        "([decision 0030](decisions/0030-faults-on-a-gpu-are-read-one-forward-later.md), "
        "`docs/results/waits-before.jsonl`):"
    )
    header = ["recipe", "prompt, before", "prompt, now", "token, before", "token, now"]
    yield table(header, _beside(read(BEFORE), found))
    yield from _by_length([row for row in rows if row.benchmark == "waits.eviction"])


def _by_length(found: Sequence[Row]) -> Iterator[str]:
    if not found:
        return
    shape = found[0].shape
    yield (
        f"One eviction at the shapes of Llama-3.1-8B (H {shape['H']}, N {shape['N']}, D "
        f"{shape['D']}, M {shape['M']}) to {shape['K']:,} positions, on tensors without data, "
        f"counted on {found[0].settings['date']} by the same command: launches / waits of a short "
        "and of a long prompt, and the memory at the peak of the eviction, as a share of the "
        "layer's keys and values. A block of a short prompt may be as large as its layer. What a "
        "cache does beside the eviction is not in it. `lava` and `layerdefensivekv` share out the "
        "budget of all layers of a model by one call; here it is the call for one layer. What "
        "they hold at once is bounded, so `rkv` and `triattention` compute a long prompt in more "
        "blocks than a short one. `restkv` has other kernels for long rows."
    )
    yield table(LENGTH_HEADER, length_cells(found))


def _beside(before: Sequence[Row], now: Sequence[Row]) -> Iterator[list[str]]:
    """Yield a line for each recipe: its prompt and its token, before and now."""
    earlier = {line[0]: line for line in cells(before)}
    places = [1 + COLUMNS.index((phase, "B = 1")) for phase in ("prompt", "token")]
    for line in cells(now):
        old = earlier.get(line[0], [""] * len(line))
        yield [line[0], *(each for place in places for each in (old[place], line[place]))]
