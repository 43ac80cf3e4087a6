"""One layer whose heads are split among several processes; threads stand for processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import attrs
import torch
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.observation.shard import Shard

SECONDS = 10
"""How long a process waits for the others to exchange with it."""


class _Meeting:
    """Lets threads exchange tensors. It breaks if one of them does not come."""

    def __init__(self, count: int) -> None:
        self._brought: list[Tensor] = [torch.empty(0)] * count
        self._barrier = threading.Barrier(count)

    def exchange(self, place: int, mine: Tensor) -> Sequence[Tensor]:
        self._brought[place] = mine
        self._barrier.wait(SECONDS)
        found = list(self._brought)
        self._barrier.wait(SECONDS)
        return found

    def leave(self) -> None:
        self._barrier.abort()


def in_shards(
    observation: Observation, act: Callable[[Observation, slice, slice], Tensor]
) -> Tensor:
    """Call `act` for each key/value head in a process of its own, and join the results by heads.

    `act` is given the observation, the query heads and the key/value head of its process. Raises
    what `act` raises, and BrokenBarrierError if processes do not exchange equally often.

    >>> from kvpolicy.testing import observation
    >>> mean = lambda layer, *_: layer.of_all_heads(layer.keys).mean((1, 2, 3))[:, None]
    >>> bool((in_shards(observation(), mean) == observation().keys.mean()).all())
    True
    """
    count = observation.keys.shape[1]
    groups, columns = observation.queries.shape[1] // count, observation.values.shape[-1]
    meeting = _Meeting(count)

    def process(place: int) -> Tensor:
        heads = slice(place * groups, (place + 1) * groups)
        weight = observation.output_weight
        if weight is not None:
            weight = weight[:, heads.start * columns : heads.stop * columns].contiguous()
        shard = Shard(first_head=heads.start, exchange=lambda mine: meeting.exchange(place, mine))
        alone = attrs.evolve(
            observation.head(place), first_head=0, output_weight=weight, shard=shard
        )
        try:
            return act(alone, heads, slice(place, place + 1))
        except Exception:
            meeting.leave()
            raise

    with ThreadPoolExecutor(count) as processes:
        return torch.cat(_results([processes.submit(process, place) for place in range(count)]), 1)


def _results(started: Sequence[Future[Tensor]]) -> list[Tensor]:
    """Return all results, or raise the error that broke the meeting."""
    errors = [error for each in started if (error := each.exception()) is not None]
    for error in sorted(errors, key=lambda each: isinstance(each, threading.BrokenBarrierError)):
        raise error
    return [each.result() for each in started]
