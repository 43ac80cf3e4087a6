"""The precision of sums that must come out equal for equal scores."""

from __future__ import annotations

import torch


def sums_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device that has no float64.

    Sums of a few float32 numbers are exact in float64, whatever their order.

    >>> sums_dtype(torch.device("cpu"))
    torch.float64
    """
    return torch.float32 if device.type == "mps" else torch.float64
