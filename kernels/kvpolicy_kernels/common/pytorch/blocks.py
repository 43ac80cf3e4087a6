"""Temporaries of bounded size.

glibc serves every allocation of 32 MiB or more from fresh pages, whose faults cost far more than
the arithmetic on them; smaller blocks are reused, and the smallest stay in the cache of a core.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

LOGITS_BYTES = 2**24
CACHED_BYTES = 2**22


def spans(start: int, stop: int, length: int) -> Iterator[slice]:
    """Cut start..stop into slices of at most `length`.

    >>> list(spans(0, 5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for first in range(start, stop, length):
        yield slice(first, min(first + length, stop))


def rows_per_block(floats: int, device: torch.device) -> int:
    """How many rows of so many float32 numbers make a good block; at least one."""
    # A GPU wants few launches; its allocator has no threshold to stay below.
    limit = LOGITS_BYTES if device.type == "cuda" else CACHED_BYTES
    return max(1, limit // (4 * max(1, floats)))
