"""The largest numbers of every row on a CPU, by NumPy: its partition and sort are vectorised."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

Array = npt.NDArray[Any]


def largest(numbers: Float[Tensor, "*rows V"], counts: int | Array) -> npt.NDArray[np.bool_]:
    """Mark the `counts` largest numbers of each row, at least 1; of equal ones the first.

    There must be no NaN. A count for each row is an array [*rows, 1].

    >>> import torch
    >>> largest(torch.tensor([[2.0, 1.0, 2.0, 2.0]]), 2)
    array([[ True, False,  True, False]])
    """
    rows = _as_array(numbers)
    least = _least(rows, counts)
    taken: npt.NDArray[np.bool_] = rows >= least
    # No row has fewer than its count. So all have as many, if they have together.
    wanted = counts * rows[..., 0].size if isinstance(counts, int) else counts.sum()
    if np.count_nonzero(taken) == wanted:
        return taken
    surplus = np.count_nonzero(taken, axis=-1, keepdims=True) - counts
    tied = (surplus > 0)[..., 0]
    equal = rows[tied] == least[tied]
    # Of those that equal the least one taken, the last have no room.
    left = np.count_nonzero(equal, axis=-1, keepdims=True) - surplus[tied]
    taken[tied] &= ~equal | (np.cumsum(equal, axis=-1, dtype=np.int32) <= left)
    return taken


def without_nan(numbers: Float[Tensor, "*rows V"]) -> Float[Tensor, "*rows V"]:
    """Return numbers of which each NaN is -inf; the same tensor, if there is none."""
    # One NaN makes the sum one. Infinities may, too; then nothing is there to be filled.
    if not numbers.sum().isnan():
        return numbers
    return numbers.masked_fill(numbers.isnan(), -torch.inf)


def _as_array(numbers: Float[Tensor, "*rows V"]) -> Array:
    """Return the same memory as an array; half precision, which NumPy does not know, as float32."""
    half = numbers.dtype in (torch.float16, torch.bfloat16)
    array: Array = (numbers.float() if half else numbers).detach().numpy()
    return array


def _least(rows: Array, counts: int | Array) -> Array:
    """Return the least of each row's largest."""
    if not isinstance(counts, int):
        if (counts == counts.flat[0]).all():
            return _least(rows, int(counts.flat[0]))
        return np.take_along_axis(np.sort(rows, axis=-1), rows.shape[-1] - counts, -1)
    place = rows.shape[-1] - counts
    # A copy, such that the rest of what was partitioned is not held on to.
    least: Array = np.partition(rows, place)[..., place : place + 1].copy()
    return least
