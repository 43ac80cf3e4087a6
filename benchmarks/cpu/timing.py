"""Times side by side: all contenders in turn, round by round, so that they share the weather."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from typing import Any

import attrs


@attrs.frozen
class Times:
    """The seconds of every round."""

    seconds: tuple[float, ...]

    def each_of(self, calls: int) -> Times:
        """Return the times of one of so many calls that were timed together."""
        return Times(tuple(seconds / calls for seconds in self.seconds))

    @property
    def min(self) -> float:
        """The fastest: what is slower measures the machine."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """The middle one."""
        return median(self.seconds)


def side_by_side(
    benchmark: Any, calls: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, Times]:
    """Time the first call by pytest-benchmark, and all others right before each of its rounds."""
    (name, subject), *rivals = calls.items()
    seconds: dict[str, list[float]] = {rival: [] for rival, _ in rivals}

    def run_rivals() -> None:
        for rival, call in rivals:
            seconds[rival].append(seconds_of(call))

    benchmark.pedantic(subject, setup=run_rivals, rounds=rounds)
    of_subject = {name: Times(tuple(benchmark.stats.stats.data))}
    return of_subject | {rival: Times(tuple(found)) for rival, found in seconds.items()}


def seconds_of(call: Callable[[], object]) -> float:
    """How long one call takes."""
    started = perf_counter()
    call()
    return perf_counter() - started
