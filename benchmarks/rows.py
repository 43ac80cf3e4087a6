"""Rows: what a benchmark measured, one JSON object a line, the same for every benchmark.

docs/performance.md is made from such lines, so a row says by itself all that is needed to read it.
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
    """One measured number, or why there is none.

    >>> row = Row(benchmark="gpu.kernels", name="gather_kv", variant="kernel", value=2.1,
    ...           unit="TB/s", device="cpu", shape={"L": 4096}, against="copy_")
    >>> Row.from_json(row.to_json()) == row
    True
    """

    benchmark: str
    """The module that measured: "gpu.kernels"."""
    name: str
    """What was measured: "gather_kv", "prefill"."""
    variant: str | None = None
    """In which form: "kernel" or "reference", "full" or "restkv"."""
    value: float | None
    """None where there is no number; `failure` then says why."""
    unit: str
    """s, GB/s, TFLOP/s, MiB, ratio, share, or bool (1: true)."""
    against: str | None = None
    """What the value is compared with; of a ratio or share, what it is divided by."""
    device: str
    """The card's name, or "cpu"."""
    machine: str = ""
    """The processor, and how many threads torch used."""
    dtype: str | None = None
    shape: Mapping[str, int] = attrs.field(factory=dict)
    """Sizes by the letters of the docs: B H N W S D K, L tokens of a prompt."""
    repeats: int | None = None
    median_seconds: float | None = None
    min_seconds: float | None = None
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    """Anything else that the number depends on."""
    versions: Mapping[str, str] = attrs.field(factory=dict)
    failure: str | None = None
    """"out of memory: ...", "red: ..." (the operation's check failed), "no time left"."""
    note: str = ""

    def to_json(self) -> str:
        """Return the row as one line."""
        return json.dumps(attrs.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Row:
        """Read what `to_json` wrote."""
        return cls(**json.loads(line))


@cache
def versions() -> Mapping[str, str]:
    """Return the versions that a number depends on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def machine() -> str:
    """Say which processor this is, and how many threads torch uses of it."""
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
    """Append rows to a file, which is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for row in rows:
            file.write(row.to_json() + "\n")


def read(path: Path) -> list[Row]:
    """Read all rows of a file."""
    return [Row.from_json(line) for line in path.read_text().splitlines() if line.strip()]
