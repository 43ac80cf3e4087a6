"""What the Triton kernels share: what they take, and how exactly they compute."""

from __future__ import annotations

import os

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""The interpreter cannot compute with bfloat16: kernels then convert what they load to float32."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_DIM = 256
PROGRAMS = 264
"""Two for each processor of an H100; the same everywhere, since sums depend on how they split."""


def refusal(*tensors: Tensor, largest_dim: int = LARGEST_DIM) -> str | None:
    """Say why no kernel takes floating-point tensors [... D]; None if one does."""
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype not in FLOATS:
            return f"it does not compute in {tensor.dtype}"
        if tensor.is_floating_point() and tensor.shape[-1] > largest_dim:
            return f"its heads have at most {largest_dim} channels, these have {tensor.shape[-1]}"
    if len({tensor.device for tensor in tensors}) > 1:
        return "its tensors are on different devices"
    return None


def product_precision(*tensors: Tensor) -> str:
    """How exactly a kernel multiplies in float32: as exactly as its inputs deserve."""
    return "ieee" if any(tensor.dtype == torch.float32 for tensor in tensors) else "tf32"


def splits(programs: int, blocks: int) -> int:
    """Say into how many parts to cut a loop over blocks that so many programs each run."""
    return max(1, min(blocks, -(-PROGRAMS // max(1, programs))))
