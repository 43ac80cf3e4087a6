"""What launchers of Triton kernels decide: whether a kernel fits, its precision, its splits."""

from __future__ import annotations

import os

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter. It has no bfloat16: kernels then load as float32."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_DIM = 256
PROGRAMS = 264
"""Programs to aim at: two for each processor of an H100.

The same on every GPU, because the rounding of a sum depends on how it is split.
"""


def refusal(*tensors: Tensor, largest_dim: int = LARGEST_DIM) -> str | None:
    """Return why a kernel cannot take these tensors [... D]; None if it can."""
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype not in FLOATS:
            return f"the kernel does not compute in {tensor.dtype}"
        if tensor.is_floating_point() and tensor.shape[-1] > largest_dim:
            return (
                f"the kernel takes heads of at most {largest_dim} channels, "
                f"these have {tensor.shape[-1]}"
            )
    if len({tensor.device for tensor in tensors}) > 1:
        return "the tensors are on different devices"
    return None


def product_precision(*tensors: Tensor) -> str:
    """Return the precision of products: "ieee" if an input is float32, else "tf32"."""
    return "ieee" if any(tensor.dtype == torch.float32 for tensor in tensors) else "tf32"


def channels_at_once(dtype: torch.dtype, dim: int) -> int:
    """Return how many channels to multiply at once; more of float32 would spill registers."""
    return 16 if dtype == torch.float32 else min(64, max(16, 1 << (dim - 1).bit_length()))


def splits(programs: int, blocks: int) -> int:
    """Return into how many parts to cut a loop over `blocks` that each of `programs` runs."""
    return max(1, min(blocks, -(-PROGRAMS // max(1, programs))))
