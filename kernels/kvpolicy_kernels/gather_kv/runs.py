"""Moving rows on a CPU by runs: rows that follow one another move by one copy of their memory."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from jaxtyping import Float, Int64
from torch import Tensor

ROWS_OF_A_RUN = 16
"""Rows that a run has on average, at least. Shorter runs are gathered faster by an index."""

_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their bytes: NumPy has no bfloat16, and no dtype matters to a copy."""

Runs = list[tuple[int, int, int, int]]
"""Row of the batch times heads, first place, first row and number of rows of each run."""


def runs_to_move(rows: Int64[Tensor, "B N K"], positions: int) -> Runs | None:
    """Return the runs of rows that do not stand at their places.

    None where the runs are short, where rows do not ascend, and where one is not among the
    positions.

    >>> runs_to_move(torch.arange(1, 40).view(1, 1, -1), 40)
    [(0, 0, 1, 39)]
    """
    flat = rows.flatten(0, 1).numpy()
    heads, kept = flat.shape
    if flat[:, 0].min() < 0 or flat[:, -1].max() >= positions:
        return None
    steps = flat[:, 1:] - flat[:, :-1]
    head, place = (steps != 1).nonzero()
    if (heads + len(head)) * ROWS_OF_A_RUN > heads * kept or not (steps[head, place] > 0).all():
        return None
    begins: list[list[int]] = [[0] for _ in range(heads)]
    for each, last in zip(head.tolist(), place.tolist(), strict=True):
        begins[each].append(last + 1)
    return [
        (each, begin, int(flat[each, begin]), end - begin)
        for each, of_head in enumerate(begins)
        for begin, end in zip(of_head, [*of_head[1:], kept], strict=True)
        if flat[each, begin] != begin
    ]


def move_runs(table: Float[Tensor, "B N S D"], runs: Runs) -> None:
    """Move each run to its place, in the order of the runs.

    NumPy copies memory that overlaps as if by way of a copy of it.
    """
    bits = table.detach().view(_SAME_SIZE[table.element_size()]).numpy()
    heads, dim = table.shape[1], table.shape[3]
    has_whole_rows = table.stride(3) == 1 and table.stride(2) == dim
    for each, place, row, count in runs:
        of_head: npt.NDArray[Any] = bits[divmod(each, heads)]
        if has_whole_rows:
            flat = of_head.reshape(-1)
            flat[place * dim : (place + count) * dim] = flat[row * dim : (row + count) * dim]
        else:
            of_head[place : place + count] = of_head[row : row + count]
    if not table.is_inference():
        # A backward pass that saved the table finds out by this that it has changed.
        torch.autograd.graph.increment_version(table)
