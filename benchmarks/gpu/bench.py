"""What a measurement is given: the device, the sizes, and a place for its rows."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import torch

from benchmarks import rows
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.timing import Timing
from kvpolicy_kernels import backend


@attrs.frozen(kw_only=True)
class Cell:
    """The smallest thing that is measured, or fails, on its own."""

    key: str
    measure: Callable[[Bench], None]
    seconds: float = 5.0
    """About how long it takes on an H100: it is not begun with less time left."""


@attrs.define(kw_only=True)
class Bench:
    """Notes rows in a file as they come: what a later crash takes with it is one cell."""

    device: torch.device
    scale: Scale
    path: Path
    known: list[rows.Row] = attrs.field(factory=list)

    @property
    def card(self) -> str:
        """The device's name, as every row says it."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return "cpu"

    @property
    def copy_rate(self) -> float | None:
        """The GB/s of `copy_` on this device, if they were measured."""
        rates = [
            row.value
            for row in self.known
            if (row.benchmark, row.name) == ("gpu.ceilings", "copy_") and row.value
        ]
        return max(rates, default=None)

    def prefill_layer_seconds(self, length: int) -> float | None:
        """How long one layer takes to read a prompt, if that was measured."""
        for row in self.known:
            if row.name == "prefill layer" and row.shape["L"] == length:
                return row.value
        return None

    def note(
        self,
        benchmark: str,
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
        """Write a row; a failure given as the value or timing leaves it without a number."""
        for given in (value, timing):
            failure = failure or (given if isinstance(given, str) else None)
        if isinstance(value, Timing):
            timing, value = value, value.median
        settings = dict(settings or {})
        if isinstance(timing, Timing):
            settings["host_seconds"] = timing.host
            fields |= {
                "repeats": len(timing.seconds),
                "median_seconds": timing.median,
                "min_seconds": timing.minimum,
            }
        row = rows.Row(
            benchmark=f"gpu.{benchmark}",
            name=name,
            value=None if failure or value is None else float(value),
            unit=unit,
            device=self.card,
            machine=rows.machine(),
            dtype=str(dtype or self.scale.dtype).removeprefix("torch."),
            shape=self.scale.shape | dict(shape or {}),
            settings=settings,
            versions=dict(rows.versions()),
            failure=failure,
            **fields,
        )
        self.known.append(row)
        rows.write(self.path, [row])

    def red(self, *operations: str) -> str | None:
        """Say which of these operations failed their check, or were not checked, on this device.

        Without a GPU the reference runs, which is what kernels are checked against.
        """
        if self.device.type != "cuda":
            return None
        checks = [row for row in self.known if row.benchmark == "gpu.checks"]
        for name in operations:
            found = [row.value for row in checks if row.name == name]
            if not found or not all(found):
                return f"red: {name} {'was not checked' if not found else 'failed its check'}"
        return None


@contextmanager
def kernels(choice: str) -> Iterator[None]:
    """Let the doors choose so: "auto" or "reference"."""
    before = os.environ.get(backend.VARIABLE)
    os.environ[backend.VARIABLE] = choice
    try:
        yield
    finally:
        if before is None:
            del os.environ[backend.VARIABLE]
        else:
            os.environ[backend.VARIABLE] = before


def under(choice: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """Return a call that lets the doors choose so."""

    def chosen() -> Any:
        with kernels(choice):
            return call()

    return chosen


def what_runs(room: str, call: Callable[[], Any], device: torch.device) -> str:
    """Call once under "auto", and say what ran: "kernel", or "reference" and why."""
    backend._warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught, kernels("auto"):
        warnings.simplefilter("always")
        call()
    fallbacks = [
        str(each.message)
        for each in caught
        if issubclass(each.category, backend.KernelFallbackWarning)
    ]
    if fallbacks:
        return f"reference: {fallbacks[0]}"
    if device.type != "cuda":
        return "reference: no GPU"
    if find_spec(f"kvpolicy_kernels.{room}.kernel") is None:
        return "reference: there is no kernel"
    return "kernel"
