"""Time and memory of one call, on a GPU by its own clock."""

from __future__ import annotations

import gc
import math
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial

import attrs
import torch

MIB = 2**20
FLUSH_BYTES = 256 * MIB
"""More than any GPU's L2 cache: what a call reads, it reads from memory."""

HEAD_START = 20_000_000
"""Clock ticks (about 12 ms) in which the host enqueues what the GPU then runs without a gap."""

Call = Callable[[], object]


@attrs.frozen
class Timing:
    """How long one call took, in seconds, over several repeats."""

    seconds: tuple[float, ...]
    host_seconds: tuple[float, ...]
    """How long the host needed to enqueue it, waits for the device included."""

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        """The fastest."""
        return min(self.seconds)

    @property
    def host(self) -> float:
        """The host's fastest."""
        return min(self.host_seconds)


def interleaved(
    calls: Mapping[str, Call],
    device: torch.device,
    *,
    repeats: int,
    warmup: int = 2,
    limit: float = 10.0,
    wall: bool = False,
) -> dict[str, Timing | str]:
    """Time calls in turns, so that a clock that drifts drifts for all; an error in its place.

    Stops after `limit` seconds, but has each call timed once. With `wall` the time is what a user
    waits, the host's included; else what the GPU takes if the host is ahead of it.
    """
    failures: dict[str, str] = {}
    for name, call in calls.items():
        for _ in range(warmup):
            failure = failure_of(call)
            if failure:
                failures[name] = failure
                break
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    started = time.perf_counter()
    for turn in range(repeats):
        if turn and time.perf_counter() - started > limit:
            break
        for name in [each for each in calls if each not in failures]:
            failures |= _taken(name, partial(timed, calls[name], device, wall=wall), taken[name])
    return {name: failures.get(name) or Timing(*zip(*taken[name], strict=True)) for name in calls}


def _taken(
    name: str, time_once: Callable[[], tuple[float, float]], pairs: list[tuple[float, float]]
) -> dict[str, str]:
    """Time a call once more; return its failure, if it has one, under its name."""
    failure = failure_of(lambda: pairs.append(time_once()))
    return {name: failure} if failure else {}


def ratio(timing: Timing | str, base: Timing | str) -> float | str:
    """Return one median over the other, or why there is none."""
    if isinstance(timing, str):
        return timing
    return base if isinstance(base, str) else timing.median / base.median


def failure_of(call: Call) -> str | None:
    """Run a call once, and say if the memory did not suffice, or what else went wrong."""
    try:
        call()
    except torch.OutOfMemoryError as error:
        failure = f"out of memory: {str(error).partition('. ')[0]}"
    except Exception as error:  # noqa: BLE001 - whatever fails, the others are to run
        traceback.print_exc()
        failure = f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    else:
        return None
    # Only now is the traceback gone, which holds what did fit.
    release()
    return failure


def timed(call: Call, device: torch.device, *, wall: bool = False) -> tuple[float, float]:
    """Return the seconds of one call, and those after which the host was free again."""
    if device.type == "cuda" and not wall:
        return _timed_by_the_gpu(call, device)
    _synchronize(device)
    started = time.perf_counter()
    call()
    host = time.perf_counter() - started
    _synchronize(device)
    return time.perf_counter() - started, host


def _timed_by_the_gpu(call: Call, device: torch.device) -> tuple[float, float]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device).zero_()
    torch.cuda._sleep(HEAD_START)
    start.record()
    started = time.perf_counter()
    call()
    host = time.perf_counter() - started
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3, host


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release() -> None:
    """Give a GPU's memory back that nothing refers to."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> float:
    """Return how many bytes can still be allocated; on a CPU that is not asked."""
    if device.type != "cuda":
        return math.inf
    release()
    return torch.cuda.mem_get_info(device)[0]


def extra_bytes(call: Call, device: torch.device) -> int | str:
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


def captured(step: Call, device: torch.device) -> Call:
    """Return a call that replays `step` as one CUDA graph; on a CPU, `step` itself.

    Tensors that `step` reads and writes must outlive the returned call.
    """
    if device.type != "cuda":
        return step
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            kept = step()
    finally:
        # A capture that fails does not put its stream away.
        torch.cuda.set_stream(torch.cuda.default_stream(device))

    def replay(results: object = kept) -> None:
        graph.replay()

    return replay
