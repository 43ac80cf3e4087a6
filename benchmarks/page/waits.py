"""The page's part on the host of a GPU: launches, waits and copies of each recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.page.markdown import table
from benchmarks.rows import Row
from benchmarks.waits.table import COLUMNS, cells


def sections(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the paragraphs."""
    found = [row for row in rows if row.benchmark.startswith("waits.")]
    if not found:
        return
    shape, versions = found[0].shape, found[0].versions
    yield "## What the host of a GPU does"
    yield (
        "Counted by `python -m benchmarks.waits --output benchmarks/results/waits.jsonl`, without "
        "a GPU: tensors that hold numbers on the CPU say that they are on one. A launch is an "
        "operation that runs on the GPU, a wait is a read of its numbers, and a copy takes "
        "pageable memory there and waits, too. Cells have launches / waits / copies of one layer; "
        "behind a plus are those of a forward beside its layers. Operations of the model itself, "
        f"its rotary embedding included, are not counted. A prompt has {shape['L']} tokens and the "
        f"budget is {shape['K']}. `unequal rows`: one of them has padding; `padded alike`: all "
        f"have. torch {versions['torch']}, transformers {versions['transformers']}. "
        "`docs/results/waits-before.jsonl` has the counts before faults were read later "
        "([decision 0030](decisions/0030-faults-on-a-gpu-are-read-one-forward-later.md))."
    )
    yield table(["recipe", *(f"{phase}, {batch}" for phase, batch in COLUMNS)], cells(found))
