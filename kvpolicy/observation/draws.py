"""Random numbers that depend on a seed alone, and not on the device that computes with them."""

from __future__ import annotations

import torch
from jaxtyping import Float32
from torch import Tensor


def drawn(rows: int, columns: int, seed: int, device: torch.device) -> Float32[Tensor, "rows S"]:
    """Return numbers from [0, 1). A device is not waited for: it copies from memory that stays.

    >>> drawn(1, 2, 7, torch.device("cpu"))
    tensor([[0.5349, 0.1988]])
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    table = torch.rand(
        (rows, columns),
        generator=generator,
        dtype=torch.float32,
        device="cpu",
        pin_memory=device.type == "cuda",
    )
    return table.to(device, non_blocking=True)
