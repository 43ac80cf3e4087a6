"""The largest numbers of each row on a CPU, by NumPy, whose partition and sort are vectorised."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

Array = npt.NDArray[Any]


def largest(numbers: Float[Tensor, "*rows V"], counts: int | Array) -> npt.NDArray[np.bool_]:
    """Mark the `counts` largest numbers of each row; of equal numbers the first ones.

    `counts` is at least 1: one number for all rows, or an array [*rows, 1]. `numbers` must have no
    NaN, see `without_nan`.

    >>> import torch
    >>> largest(torch.tensor([[2.0, 1.0, 2.0, 2.0]]), 2)
    array([[ True, False,  True, False]])
    """
    rows = _as_array(numbers)
    least = _least(rows, counts)
    taken: npt.NDArray[np.bool_] = rows >= least
    # Each row has at least its count. If the total is right, each row has exactly its count.
    wanted = counts * rows[..., 0].size if isinstance(counts, int) else counts.sum()
    if np.count_nonzero(taken) == wanted:
        return taken
    surplus = np.count_nonzero(taken, axis=-1, keepdims=True) - counts
    tied = (surplus > 0)[..., 0]
    equal = rows[tied] == least[tied]
    # Too many numbers equal the least one taken: drop the last of them.
    left = np.count_nonzero(equal, axis=-1, keepdims=True) - surplus[tied]
    taken[tied] &= ~equal | (np.cumsum(equal, axis=-1, dtype=np.int32) <= left)
    return taken


def without_nan(numbers: Float[Tensor, "*rows V"]) -> Float[Tensor, "*rows V"]:
    """Return the numbers with -inf for each NaN; the same tensor if there is no NaN."""
    # If a number is NaN, so is the sum. Infinities can also make it NaN: that costs only time.
    if not numbers.sum().isnan():
        return numbers
    return numbers.masked_fill(numbers.isnan(), -torch.inf)


def _as_array(numbers: Float[Tensor, "*rows V"]) -> Array:
    """Return an array over the same memory; half precision as float32, as NumPy has no bfloat16."""
    half = numbers.dtype in (torch.float16, torch.bfloat16)
    array: Array = (numbers.float() if half else numbers).detach().numpy()
    return array


def _least(rows: Array, counts: int | Array) -> Array:
    """Return the least of the `counts` largest numbers of each row."""
    if not isinstance(counts, int):
        if (counts == counts.flat[0]).all():
            return _least(rows, int(counts.flat[0]))
        return np.take_along_axis(np.sort(rows, axis=-1), rows.shape[-1] - counts, -1)
    place = rows.shape[-1] - counts
    # A copy: a view would keep the whole partitioned array in memory.
    least: Array = np.partition(rows, place)[..., place : place + 1].copy()
    return least
