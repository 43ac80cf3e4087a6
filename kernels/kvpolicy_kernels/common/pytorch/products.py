"""Products of float32 matrices on a CPU, by the faster of two libraries that PyTorch ships.

`torch.mm` uses MKL, which is slow on processors that are not Intel's. oneDNN is as exact, and
faster there. PyTorch offers it for float32 only through the operator that `torch.compile` writes
into its programs. If that operator is missing or fails, `torch.mm` computes the product.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float32
from torch import Tensor

LEAST = 2**20
"""Fewer multiplications are left to MKL: oneDNN takes time to prepare each new shape."""

Product = Callable[[Tensor, Tensor], Tensor]


def transposed_product(
    rows: Float32[Tensor, "n d"], others: Float32[Tensor, "m d"]
) -> Float32[Tensor, "n m"]:
    """Return rows @ others.T in new memory.

    >>> import torch
    >>> transposed_product(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    tensor([[11., 17.]])
    """
    size = rows.shape[0] * others.shape[0] * rows.shape[1]
    if rows.device.type == "cpu" and size >= LEAST and bool(torch.backends.mkldnn.enabled):
        product = _by_onednn()
        if product is not None:
            # oneDNN is slow on rows with gaps between them: it reads them number by number.
            return product(rows.contiguous(), others.contiguous())
    return rows @ others.T


@functools.cache
def _by_onednn() -> Product | None:
    """Return oneDNN's product, or None if this PyTorch has none that computes correctly."""
    rows = torch.arange(6, dtype=torch.float32, device="cpu").view(2, 3)
    try:
        if not torch.backends.mkldnn.is_available():
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            right = torch.equal(_linear(rows, rows), rows @ rows.T)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return None
    return _linear if right else None


def _linear(rows: Tensor, others: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, others, None, "none", [], "")
    return product
