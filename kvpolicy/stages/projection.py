"""The output projection as each head sees it, factorised once per weight."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from kvpolicy_kernels import head_factors

_factors: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def output_factors(weight: Float[Tensor, "M columns"], heads: int) -> Float[Tensor, "H R Dv"]:
    """Return the R factor of every head's columns of `weight`, remembered while `weight` lives.

    A weight that was written to in place since (its version counter moved) is factorised anew.
    """
    version = 0 if weight.is_inference() else weight._version
    known = _factors.get(weight)
    if known is None or known[0] != (version, heads):
        known = _factors[weight] = ((version, heads), head_factors(weight.detach(), heads))
    factors: Tensor = known[1]
    return factors
