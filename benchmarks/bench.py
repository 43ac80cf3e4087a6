"""Where the rows of a program go, and the cells that it measures."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import attrs
import torch

from benchmarks import rows
from benchmarks.timing import Timing, failure_of

S = TypeVar("S")
"""How large everything is."""


@attrs.frozen(kw_only=True)
class Cell(Generic[S]):
    """The smallest thing that is measured, or fails, on its own."""

    key: str
    """The section, the name and the sizes: "kernels/select/4096"."""
    measure: Callable[[Bench[S]], None]
    seconds: float = 5.0
    """About how long it takes on an H100. It does not begin with less time left."""


@attrs.define(kw_only=True)
class Bench(Generic[S]):
    """Notes each row in a file at once, so that a later crash costs no row."""

    program: Literal["cpu", "gpu"]
    device: torch.device
    scale: S
    path: Path
    dtype: torch.dtype
    """Of a row that names none."""
    shape: Mapping[str, int] = attrs.field(factory=dict)
    """The sizes that all rows share."""
    value_of: Callable[[Timing], float] = attrs.field(default=lambda timing: timing.median)
    """The number of a timing that a row tells."""
    known: list[rows.Row] = attrs.field(factory=list)

    @property
    def card(self) -> str:
        """The name of the device."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return "cpu"

    def note(
        self,
        section: str,
        name: str,
        value: float | Timing | str | None,
        unit: str,
        *,
        timing: Timing | str | None = None,
        shape: Mapping[str, int] | None = None,
        dtype: torch.dtype | None = None,
        failure: str | None = None,
        settings: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """Write a row. A string given as the value or the timing is a failure."""
        for given in (value, timing):
            failure = failure or (given if isinstance(given, str) else None)
        if isinstance(value, Timing):
            timing, value = value, self.value_of(value)
        settings = dict(settings or {})
        if isinstance(timing, Timing):
            settings |= {"host_seconds": timing.host} if self.device.type == "cuda" else {}
            fields |= {
                "repeats": len(timing.seconds),
                "median_seconds": timing.median,
                "min_seconds": timing.minimum,
                "spread_seconds": timing.spread,
            }
        row = rows.Row(
            benchmark=f"{self.program}.{section}",
            name=name,
            value=None if failure or value is None else float(value),
            unit=unit,
            device=self.card,
            machine=rows.machine(),
            dtype=str(dtype or self.dtype).removeprefix("torch."),
            shape=dict(self.shape) | dict(shape or {}),
            settings=settings,
            versions=dict(rows.versions()),
            failure=failure,
            **fields,
        )
        self.known.append(row)
        rows.write(self.path, [row])

    def red(self, *names: str) -> str | None:
        """Say which of these checks failed or did not run; None if all are green."""
        checks = [row for row in self.known if row.benchmark == f"{self.program}.checks"]
        for name in names:
            found = [row for row in checks if row.name == name]
            if not found:
                return f"red: {name} was not checked"
            failed = next((row for row in found if not row.value), None)
            if failed is not None:
                return f"red: {name} failed its check" + (failed.note and f": {failed.note}")
        return None


def run(bench: Bench[S], cells: Iterable[Cell[S]]) -> None:
    """Measure cells in this process, one after another."""
    for cell in cells:
        measured(bench, cell)


def measured(bench: Bench[S], cell: Cell[S]) -> bool:
    """Measure a cell, and note its failure if it fails; return whether the device still answers."""
    started = time.perf_counter()
    failure = failure_of(lambda: cell.measure(bench))
    if failure:
        note_failure(bench, cell, failure)
    bench.note("cell", cell.key, time.perf_counter() - started, "s", failure=failure)
    return answers(bench.device)


def answers(device: torch.device) -> bool:
    """Whether the device still computes. After an illegal access it does not."""
    try:
        return bool(torch.ones(2, device=device).sum() == 2)
    except RuntimeError:
        traceback.print_exc()
        return False


def note_failure(bench: Bench[S], cell: Cell[S], failure: str) -> None:
    """Write a row that says why a cell has no numbers."""
    section, name, *rest = cell.key.split("/")
    bench.note(section, name, None, "", variant="/".join(rest) or None, failure=failure)
