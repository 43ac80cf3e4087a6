"""Times calls in turns; on a GPU by its own clock."""

from __future__ import annotations

import gc
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import attrs
import torch

MIB = 2**20
FLUSH_BYTES = 256 * MIB
"""More than the L2 cache of any GPU, so that a call reads its inputs from memory."""
HEAD_START = 20_000_000
"""Clock ticks (about 12 ms) for which the GPU waits, so that the host enqueues all work before."""

Call = Callable[[], object]
K = TypeVar("K")
"""What a call is known by."""
Clock = Callable[[], float]


@attrs.frozen
class Timing:
    """The seconds of one call, for each repeat."""

    seconds: tuple[float, ...]
    host_seconds: tuple[float, ...]
    """Until the host had enqueued the work, its waits for the device included."""

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        """The fastest repeat: slower ones measure what else the machine does."""
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """The distance between the first and the third quartile; 0 for one repeat."""
        if len(self.seconds) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return third - first

    @property
    def host(self) -> float:
        """The host's fastest repeat."""
        return min(self.host_seconds)

    def each_of(self, calls: int) -> Timing:
        """Return the timing of one call if `calls` of them were timed together."""
        return Timing(
            tuple(seconds / calls for seconds in self.seconds),
            tuple(seconds / calls for seconds in self.host_seconds),
        )


def interleaved(
    calls: Mapping[K, Call],
    device: torch.device,
    *,
    repeats: int,
    warmup: int = 2,
    limit: float = 10.0,
    wall: bool = False,
    clock: Clock = time.perf_counter,
) -> dict[K, Timing | str]:
    """Time calls in turns, so that a drift of the machine affects all alike.

    Returns the failure of a call in place of its timing. Stops after `limit` seconds, but times
    each call once. With `wall` it measures what a user waits, the host's time included; without, on
    a GPU, the time of the GPU alone.
    """
    failures: dict[K, str] = {}
    for name, call in calls.items():
        for _ in range(warmup):
            failure = failure_of(call)
            if failure:
                failures[name] = failure
                break
    taken: dict[K, list[tuple[float, float]]] = {name: [] for name in calls}
    started = time.perf_counter()
    for turn in range(repeats):
        if turn and time.perf_counter() - started > limit:
            break
        for name in [each for each in calls if each not in failures]:
            time_once = partial(timed, calls[name], device, wall=wall, clock=clock)
            failures |= _taken(name, time_once, taken[name])
    return {name: failures.get(name) or Timing(*zip(*taken[name], strict=True)) for name in calls}


def _taken(
    name: K, time_once: Callable[[], tuple[float, float]], pairs: list[tuple[float, float]]
) -> dict[K, str]:
    """Time a call once more; return its failure under its name, if it has one."""
    failure = failure_of(lambda: pairs.append(time_once()))
    return {name: failure} if failure else {}


def ratio(
    timing: Timing | str, base: Timing | str, seconds: Callable[[Timing], float] | None = None
) -> float | str:
    """Return one median over the other, or `seconds` of one over the other; or the failure."""
    take = seconds or (lambda each: each.median)
    numbers = [each if isinstance(each, str) else take(each) for each in (timing, base)]
    return quotient(*numbers)


def quotient(number: float | str, base: float | str) -> float | str:
    """Return one number over the other, or the failure that stands in place of either."""
    if isinstance(number, str):
        return number
    return base if isinstance(base, str) else number / base


def failure_of(call: Call) -> str | None:
    """Run a call once; return "out of memory: ..." or "failed: ..." if it raised."""
    try:
        call()
    except torch.OutOfMemoryError as error:
        failure = f"out of memory: {str(error).partition('. ')[0]}"
    except Exception as error:  # noqa: BLE001 - the other calls are still to run
        traceback.print_exc()
        failure = f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    else:
        return None
    # The traceback is gone only now; it held tensors.
    release()
    return failure


def timed(
    call: Call, device: torch.device, *, wall: bool = False, clock: Clock = time.perf_counter
) -> tuple[float, float]:
    """Return the seconds of one call, and the seconds until the host was free again."""
    if device.type == "cuda" and not wall:
        return _timed_by_the_gpu(call, device)
    _synchronize(device)
    started = clock()
    call()
    host = clock() - started
    _synchronize(device)
    return clock() - started, host


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
    """Give back memory of the GPU that nothing refers to."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
