"""Tensor parallelism in vLLM: each process has some heads, and methods that compare heads share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from vllm.distributed.parallel_state import get_tp_group

from kvpolicy.observation.shard import Shard


def rank_count() -> int:
    """Return how many processes share the model by tensor parallelism."""
    count: int = get_tp_group().world_size
    return count


def shard_of(heads: int) -> Shard | None:
    """Say which of a layer's query heads this process has; None if it has all."""
    if rank_count() == 1:
        return None
    return Shard(first_head=get_tp_group().rank_in_group * heads, exchange=exchange)


def exchange(mine: Tensor) -> Sequence[Tensor]:
    """Return this tensor of every process, on its device; they must be of one shape."""
    group = get_tp_group()
    there = mine.to(group.device).contiguous()
    found = [torch.empty_like(there) for _ in range(group.world_size)]
    torch.distributed.all_gather(found, there, group=group.device_group)
    return [each.to(mine.device) for each in found]
