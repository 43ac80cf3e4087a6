"""Memory at the peak of a call: by the allocator of a GPU, or by the pages of a fresh process."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import MIB, failure_of, release


def in_a_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a process that has allocated nothing yet, with as many threads as here."""
    threads = torch.get_num_threads()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, torch.set_num_threads, (threads,)) as pool:
        return pool.submit(function, *arguments).result()


def extra_mib(call: Callable[[], object]) -> float:
    """Return how many MiB more than before are resident at the peak of a call; Linux only."""
    # Memory that is free but still resident would hide what the call takes.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mib("VmRSS")
    call()
    return resident_mib("VmHWM") - before


def resident_mib(field: str) -> float:
    """Read a line of this process's status: VmRSS is resident now, VmHWM was at the peak."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    assert found is not None, f"no {field} in /proc/self/status"
    return int(found[1]) * 1024 / MIB


def free_bytes(device: torch.device) -> float:
    """Return how many bytes a GPU can still allocate; infinity for a CPU."""
    if device.type != "cuda":
        return math.inf
    release()
    return torch.cuda.mem_get_info(device)[0]


def reserved_bytes(call: Callable[[], object], device: torch.device) -> int | str:
    """Return how many bytes a GPU's allocator holds at the peak of a call, or why not."""
    if device.type != "cuda":
        call()
        return "the CPU's allocator does not count"
    release()
    torch.cuda.reset_peak_memory_stats(device)
    failure = failure_of(call)
    torch.cuda.synchronize(device)
    return failure or torch.cuda.max_memory_reserved(device)


def extra_bytes(call: Callable[[], object], device: torch.device) -> int | str:
    """Return how many bytes more than before are allocated at the peak of a call, or why not."""
    if device.type != "cuda":
        call()
        return "the CPU's allocator does not count"
    release()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    failure = failure_of(call)
    torch.cuda.synchronize(device)
    return failure or torch.cuda.max_memory_allocated(device) - before
