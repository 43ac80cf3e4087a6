"""The page's part on kvpress itself: one layer, method by method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.page.markdown import table
from benchmarks.rows import Row


def sections(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the paragraphs."""
    found = {(row.variant or "", row.unit): row for row in rows if row.benchmark == "kvpress"}
    if not found:
        return
    first = next(iter(found.values()))
    yield "### Beside kvpress itself"
    yield (
        f"Measured by `make kvpress` on {first.machine}: kvpress {first.versions['kvpress']} in an "
        "environment of its own evicts half of a layer in the settings that kvpolicy has, too "
        f"(S {first.shape['S']:,}, H {first.shape['H']}, N {first.shape['N']}, D "
        f"{first.shape['D']}, {first.dtype}). CPU seconds of one thread, the fastest of several "
        "processes that ran in turns. kvpress computes the queries of the window again; this is in "
        "its time. Its AdaKV keeps all keys and masks some."
    )
    methods = [name.removesuffix(", kvpress") for name, unit in found if unit == "s"]
    lines = [
        [method, *(_cell(found, method, *place) for place in _COLUMNS)]
        for method in methods
        if not method.endswith(", kvpolicy")
    ]
    heads = ["method", "kvpolicy", "kvpress", "times as fast", "kvpolicy, extra", "kvpress, extra"]
    yield table(heads, lines)


_COLUMNS = (
    ("kvpolicy", "s"), ("kvpress", "s"), ("kvpolicy", "ratio"), ("kvpolicy", "MiB"),
    ("kvpress", "MiB"),
)  # fmt: skip
_FORMS = {"s": "{:.3f} s", "ratio": "{:.1f}x", "MiB": "{:.0f} MiB"}


def _cell(found: dict[tuple[str, str], Row], method: str, who: str, unit: str) -> str:
    return _FORMS[unit].format(found[f"{method}, {who}", unit].value)
