"""Rows: what a benchmark measured, one JSON object a line, the same for all benchmarks.

docs/performance.md is made from rows, so a row says all that is needed to read its number.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import attrs

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("kvpolicy", "torch", "triton", "transformers")


@attrs.frozen(kw_only=True)
class Row:
    """One number, or the reason why there is none.

    >>> row = Row(benchmark="gpu.kernels", name="gather_kv", variant="kernel", value=2.1,
    ...           unit="TB/s", device="cpu", shape={"L": 4096}, against="copy_")
    >>> Row.from_json(row.to_json()) == row
    True
    """

    benchmark: str
    """The program and its section: "gpu.kernels"."""
    name: str
    """What was measured: "gather_kv", "prefill"."""
    variant: str | None = None
    """In which form: "kernel" or "reference", "full" or "restkv"."""
    value: float | None
    """None if there is no number; `failure` then says why."""
    unit: str
    """s, GB/s, TFLOP/s, MiB, ratio, share, exponent, or bool (1: true)."""
    against: str | None = None
    """What the value is compared with. A ratio or share is divided by it."""
    device: str
    """The name of the card, or "cpu"."""
    machine: str = ""
    """The processor, and the number of torch's threads."""
    dtype: str | None = None
    shape: Mapping[str, int] = attrs.field(factory=dict)
    """Sizes by the letters of the docs: B H N W S D K; L is the tokens of a prompt."""
    repeats: int | None = None
    median_seconds: float | None = None
    min_seconds: float | None = None
    spread_seconds: float | None = None
    """Between the first and the third quartile of the repeats."""
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    """Everything else that the number depends on."""
    versions: Mapping[str, str] = attrs.field(factory=dict)
    failure: str | None = None
    """"out of memory: ...", "red: ..." (a check failed), "no time left"."""
    note: str = ""

    def to_json(self) -> str:
        """Return the row as one line."""
        return json.dumps(attrs.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Row:
        """Read what `to_json` returned."""
        return cls(**json.loads(line))


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of what a number depends on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def machine() -> str:
    """Return the name of the processor, and how many of its threads torch uses."""
    import torch

    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} {'thread' if threads == 1 else 'threads'}"


@cache
def _processor() -> str:
    lines = Path("/proc/cpuinfo")
    for line in lines.read_text().splitlines() if lines.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write(path: Path, rows: Iterable[Row]) -> None:
    """Append rows to a file; make the file and its folder if they are not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for row in rows:
            file.write(row.to_json() + "\n")


def read(path: Path) -> list[Row]:
    """Return all rows of a file."""
    text = path.read_text(encoding="utf-8-sig")
    return [Row.from_json(line) for line in text.splitlines() if line.strip()]
