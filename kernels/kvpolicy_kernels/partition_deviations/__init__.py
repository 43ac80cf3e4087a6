"""How much the rows of each partition of a text differ from those of the next one."""

from __future__ import annotations

from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy_kernels.backend import implementation
from kvpolicy_kernels.checks import require
from kvpolicy_kernels.partition_deviations.reference import deviation

__all__ = ["deviation", "partition_deviations"]


def partition_deviations(
    states: Float[Tensor, "B N S D"], lag: int
) -> Float32[Tensor, "B N judged lag"]:
    """Return the deviation of each row from the partition behind its own.

    A partition is `lag` rows, and S is a multiple of it. The last partition has none behind it, so
    `judged` is S / lag - 1; at least 0. `low` and `high` of `deviation` are the least and the
    largest of each channel in the next partition.

    Raises ValueError if S is no multiple of `lag`.

    >>> import torch
    >>> states = torch.tensor([[[[0.0, 1.0], [2.0, 2.0], [0.0, 0.0], [1.0, 1.0]]]])
    >>> partition_deviations(states, 2)
    tensor([[[[0.7071, 0.0000]]]])
    """
    require(
        lag >= 1 and states.shape[2] % lag == 0,
        f"{states.shape[2]} rows are no partitions of {lag} rows",
    )
    return implementation(partition_deviations, states)(states, lag)
