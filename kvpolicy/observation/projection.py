"""QR factors of the output projection, for each head or group of heads, computed once a weight."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from kvpolicy_kernels import head_factors

_factors: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_fingerprints: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Of weights on a GPU that were factorised; not read until a conversation begins."""


def output_factors(weight: Float[Tensor, "M columns"], heads: int) -> Float[Tensor, "H R Dv"]:
    """Return the R factor of a QR of each head's columns of `weight`.

    `heads` divides the columns: the number of query heads gives a factor for each of them, the
    number of key/value heads gives one for each group. Factors are kept as long as `weight` exists.

    A weight whose numbers have changed is factorised again. On a CPU a fingerprint finds the
    change: merging adapters writes through `.data`, which leaves the version counter as it was. To
    read a fingerprint of a GPU would be a wait for each layer. There the version counter and the
    place of the weight must do, and `check_factors` compares fingerprints when a cache is made.
    """
    mark = mark_of(weight)
    remembered = _factors.setdefault(weight, {})
    known = remembered.get(heads)
    if known is None or known[0] != mark:
        known = remembered[heads] = (mark, head_factors(weight.detach(), heads))
        if weight.device.type != "cpu":
            _fingerprints[weight] = _fingerprint(weight.detach())
    factors: Tensor = known[1]
    return factors


def check_factors(weight: Float[Tensor, "M columns"]) -> None:
    """Forget the factors of a weight on a GPU whose numbers have changed. Waits for the device."""
    if weight.device.type == "cpu":
        return
    known = _fingerprints.get(weight)
    if known is not None and not torch.equal(known, _fingerprint(weight.detach())):
        _factors.pop(weight, None)


def mark_of(weight: Float[Tensor, "M columns"]) -> tuple[object, ...]:
    """Return what says that the numbers of a weight are those that were factorised."""
    if weight.device.type == "cpu":
        return weight.dtype, weight.device, float(_fingerprint(weight.detach()))
    version = 0 if weight.is_inference() else weight._version
    return weight.dtype, weight.device, weight.data_ptr(), version


def _fingerprint(weight: Float[Tensor, "M columns"]) -> Float[Tensor, ""]:
    """Return a sum in which every entry has a factor of its own."""
    rows, columns = (
        torch.linspace(1, 2, size, device=weight.device, dtype=torch.float32)
        for size in weight.shape
    )
    # Blocks of rows, so that a half-precision weight is never copied whole to float32.
    products = [block.float() @ columns for block in weight.split(512)]
    return rows @ torch.cat(products)
