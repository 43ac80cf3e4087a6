"""In what precision to add up scores that must tie where they are equal."""

from __future__ import annotations

import torch


def sums_dtype(device: torch.device) -> torch.dtype:
    """Return float64, in which sums of a few float32 numbers are exact, where the device has it.

    >>> sums_dtype(torch.device("cpu"))
    torch.float64
    """
    return torch.float32 if device.type == "mps" else torch.float64
