"""Uneven heads cut into tiles of one size, so that each program of a launch has as much to do."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from kvpolicy_kernels.common.triton.launch import PROGRAMS

SMALLEST = 64
"""The fewest rows of a tile."""

PARTIAL_NUMBERS = 2**24
"""The most float32 numbers in the outputs of all tiles, before they are merged."""


class Tiles(NamedTuple):
    """The tiles of all heads."""

    total: int
    table: Int[Tensor, "tiles 3"]
    """Head, first row and number of rows of each tile; the tiles of a head are neighbours."""
    bounds: Int[Tensor, " heads+1"]
    """The first tile of each head, then the number of tiles."""


def span_of(longest: int, rows: int, heads: int, numbers: int) -> int:
    """Return how many rows a tile has: as few as possible without making too many tiles.

    `longest` is the length of the longest head, `rows` that of all `heads` together, and `numbers`
    counts the numbers in the output of a tile. More tiles than twice the programs that a GPU runs
    at once balance the work no better.

    >>> span_of(longest=100, rows=800, heads=8, numbers=512)
    64
    >>> span_of(longest=100_000, rows=800_000, heads=8, numbers=512)
    2048
    """
    most = min(2 * PROGRAMS, PARTIAL_NUMBERS // numbers)
    span = SMALLEST
    while span < longest and rows // span + heads > most:
        span *= 2
    return span


@lru_cache(maxsize=256)  # for each layer of a model, as long as its heads keep their lengths
def tiles_of(lengths: tuple[int, ...], numbers: int, device: torch.device) -> Tiles:
    """Return the tiles of heads with these lengths, whose rows lie one behind another.

    The tables are on `device`, copied there at once.

    >>> tiles = tiles_of((100, 0, 64), 512, torch.device("cpu"))
    >>> tiles.table.tolist(), tiles.bounds.tolist()
    ([[0, 0, 64], [0, 64, 36], [2, 100, 64]], [0, 2, 2, 3])
    """
    span = span_of(max(lengths), sum(lengths), len(lengths), numbers)
    sizes = torch.tensor(lengths, device="cpu")
    bounds = F.pad(((sizes + span - 1) // span).cumsum(0), (1, 0))
    heads = torch.arange(len(lengths), device="cpu").repeat_interleave(bounds.diff())
    before = (torch.arange(len(heads), device="cpu") - bounds[heads]) * span
    first = (sizes.cumsum(0) - sizes)[heads] + before
    table = torch.stack([heads, first, (sizes[heads] - before).clamp_(max=span)], dim=1)
    moved = torch.cat([bounds, table.flatten()]).to(device)
    return Tiles(len(heads), moved[len(bounds) :].view(-1, 3), moved[: len(bounds)])
