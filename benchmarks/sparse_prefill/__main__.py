"""How much sooner the first token comes if a prompt is read by a pattern.

python -m benchmarks.sparse_prefill --tokens 4096 8192
python -m benchmarks.sparse_prefill --device cuda --dtype bfloat16 --size llama-3.1-8b \
    --tokens 32768 65536 131072

A Llama with random weights reads random tokens with a cache that evicts: densely and by a pattern,
in turns. The attention of one layer alone is measured too. `attention_share` is f, the share of
attention in the dense prefill. `density` is rho, the share of query-key pairs that the pattern
computes. If a pair costs as much as in dense attention, the prefill is at most
1 / (1 - f + f rho) times as fast. A pattern whose attention is wrong or does not compile gets no
speed. Prints JSON lines.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import attrs
import torch

from benchmarks.page.markdown import table
from benchmarks.rows import Row, write
from benchmarks.sparse_prefill.inputs import SIZES, random_model
from benchmarks.sparse_prefill.measurement import Plan, measure

ON_A_CPU = (
    '{"name": "ashape", "sinks": 128, "local": 512}',
    '{"name": "verticalslash", "columns": 256, "diagonals": 256}',
)
"""Patterns for short prompts; those for long ones would leave nothing out."""
ON_A_GPU = ("ashape", "verticalslash")
"""Patterns for long prompts, with their default options."""
HEADINGS = (
    "tokens",
    "pattern",
    "what",
    "density",
    "attention's share",
    "dense, s",
    "sparse, s",
    "faster",
    "bound",
    "of bound",
)


def table_of(rows: list[Row]) -> str:
    """Return the rows as a table of Markdown."""
    return table(HEADINGS, map(_cells, rows))


def _cells(row: Row) -> list[str]:
    first = [f"{row.shape['L']:,}", str(row.variant), row.name]
    if row.value is None:
        return [*first, str(row.failure), *[""] * 6]
    settings = row.settings
    share = settings.get("attention_share")
    return [
        *first,
        f"{100 * settings['density']:.1f} %",
        "" if share is None else f"{100 * share:.0f} %",
        f"{settings['dense_seconds']:.3f}",
        f"{settings['sparse_seconds']:.3f}",
        f"{row.value:.2f}x",
        f"{settings['bound']:.2f}x",
        f"{100 * settings['share_of_bound']:.0f} %",
    ]


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sparse_prefill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--prefill", nargs="+", help="names, or JSON objects with a name")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    for field in attrs.fields(Plan):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", type=Path, help="append the rows to this file")
    parser.add_argument("--table", action="store_true", help="print Markdown instead of JSON")
    options = parser.parse_args(arguments)
    if options.prefill is None:
        options.prefill = list(ON_A_GPU if options.device == "cuda" else ON_A_CPU)
    return options


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    model = random_model(options.size, options.layers, dtype, options.device)
    plan = Plan(**{field.name: getattr(options, field.name) for field in attrs.fields(Plan)})
    rows: list[Row] = []
    for tokens in options.tokens:
        for prefill in options.prefill:
            for row in measure(model, tokens, prefill, plan):
                rows.append(row)
                if not options.table:
                    print(row.to_json(), flush=True)
    if options.table:
        print(table_of(rows))
    if options.write:
        write(options.write, rows)


if __name__ == "__main__":
    main()
