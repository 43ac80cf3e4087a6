"""Blocks of bounded size for temporary tensors.

glibc serves every allocation of 32 MiB or more from fresh memory pages. Their page faults cost far
more than the arithmetic. Smaller blocks are reused, and the smallest stay in the cache of a core.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

LOGITS_BYTES = 2**24
"""Bytes of a block of logits."""

CACHED_BYTES = 2**22
"""Bytes of a block that stays in the cache of a CPU core."""


def spans(start: int, stop: int, length: int) -> Iterator[slice]:
    """Cut the range from `start` to `stop` into slices of at most `length`.

    >>> list(spans(0, 5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for first in range(start, stop, length):
        yield slice(first, min(first + length, stop))


def rows_per_block(floats: int, device: torch.device, *, layer: int = 0) -> int:
    """Return how many rows of `floats` float32 numbers fit into a block; at least 1.

    `layer` are the bytes of a layer's keys and values. On a GPU a block may be a twelfth of them,
    so that the number of blocks does not grow with the layer.
    """
    # A GPU is faster with few large blocks. Its allocator has no such threshold as glibc's.
    limit = max(LOGITS_BYTES, layer // 12) if device.type == "cuda" else CACHED_BYTES
    return max(1, limit // (4 * max(1, floats)))
