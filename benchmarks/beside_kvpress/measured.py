"""CPU seconds and extra memory of calls, with PyTorch alone: it runs in both environments."""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], Any]


def arguments() -> argparse.Namespace:
    """Read which methods are measured, at which length, and how often."""
    parser = argparse.ArgumentParser()
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--length", type=int, default=16_384)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def run(call_of: Callable[[str, int], Call]) -> None:
    """Print one JSON object for each method: its fastest CPU seconds and its extra MiB."""
    asked = arguments()
    torch.set_num_threads(1)
    with torch.no_grad():
        for method in asked.methods:
            print(json.dumps(measured(method, call_of, asked.length, asked.repeats)), flush=True)


def measured(
    method: str, call_of: Callable[[str, int], Call], length: int, repeats: int
) -> dict[str, Any]:
    """Return the fastest of the repeats, and the memory of the first, in MiB."""
    # The first eviction loads libraries and starts their threads.
    call_of(method, min(length, 1024))()
    call = call_of(method, length)
    memory = _extra_mib(call)
    seconds = [_cpu_seconds(call) for _ in range(repeats)]
    return {"method": method, "seconds": min(seconds), "mib": memory}


def _cpu_seconds(call: Call) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def _extra_mib(call: Call) -> float:
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_mib("VmRSS")
    call()
    return _resident_mib("VmHWM") - before


def _resident_mib(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, f"no {field} in /proc/self/status"
    return int(found[1]) / 1024
