"""Sends small tables from the host to a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor


def sent(numbers: Sequence[int], device: torch.device) -> Int64[Tensor, " count"]:
    """Return a tensor of these numbers on a device, without a wait for what the device does.

    >>> sent([3, 4], torch.device("cpu"))
    tensor([3, 4])
    """
    table = torch.tensor(numbers, dtype=torch.long, device="cpu")
    # CUDA takes so small a table along with the command.
    return table.to(device, non_blocking=True)
