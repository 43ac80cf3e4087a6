"""Memory at the peak of a call, measured in a process that nothing else has used; Linux only."""

from __future__ import annotations

import ctypes
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch


def in_a_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run with as many threads as here, but without what this process has allocated before."""
    threads = torch.get_num_threads()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, torch.set_num_threads, (threads,)) as pool:
        return pool.submit(function, *arguments).result()


def extra_mib(call: Callable[[], object]) -> float:
    """Return the resident memory that a call needs at its peak, on top of what there was."""
    # Memory that is free but still resident would hide what the call takes.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mib("VmRSS")
    call()
    return resident_mib("VmHWM") - before


def resident_mib(field: str) -> float:
    """Read a line of this process's status: VmRSS is resident now, VmHWM was at the peak."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024
