"""Back ends of quantization: each chooses the step and the least value of a group of numbers.

A number is read as `least + step * code`, whatever the back end. How codes are stored is the
subject of `rows`. Each group is quantized alone, so a row never depends on rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TypeAlias

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from kvpolicy.errors import InvalidValueError

Groups: TypeAlias = Float[Tensor, "R G"]
Codes: TypeAlias = tuple[UInt8[Tensor, "R G"], Float[Tensor, "R 1"], Float[Tensor, "R 1"]]
"""Codes, steps and least values of R groups of G numbers."""
Quantize: TypeAlias = Callable[[Groups, int], Codes]

_HQQ = {
    "lp_norm": 0.7,
    "beta": 10.0,
    "kappa": 1.01,
    "iters": 20,
    "tol": 0.0,
    # Early stopping looks at the mean over all groups: a row would depend on other rows.
    "early_stop": False,
    "scale_gridsearch": False,
}
"""hqq's own settings, except for `early_stop`."""


def minmax(groups: Groups, bits: int) -> Codes:
    """Spread the codes evenly from the least to the largest number of each group.

    No number is off by more than half a step.

    >>> codes, step, least = minmax(torch.tensor([[0.0, 1.0, 7.4, 15.0]]), 4)
    >>> codes, step.item(), least.item()
    (tensor([[ 0,  1,  7, 15]], dtype=torch.uint8), 1.0, 0.0)
    """
    step, least = _spread(groups, bits)
    return ((groups - least) / step).round().clamp_(0, 2**bits - 1).byte(), step, least


def quanto(groups: Groups, bits: int) -> Codes:
    """Quantize as transformers' cache does with optimum-quanto, grouped along axis 0.

    Codes are never packed: to unpack them quanto would compile an extension in C++ first.
    """
    from optimum.quanto import MaxOptimizer, qint4

    size = groups.shape[-1]
    scale, shift = MaxOptimizer()(groups, qint4, 0, size)
    codes = torch.ops.quanto.quantize_affine(groups, qint4.bits, 0, size, scale, shift)
    return codes, scale, -shift


def hqq(groups: Groups, bits: int) -> Codes:
    """Choose the zero point of each group so that most of its numbers have small errors.

    Half-quadratic quantization, Badri and Shaji, https://mobiusml.github.io/hqq_blog. A few numbers
    may be off by more than half a step; the others are off by less.
    """
    from hqq.core.optimize import optimize_weights_proximal_v2

    step, least = _spread(groups, bits)
    codes, scale, zero = optimize_weights_proximal_v2(
        groups,
        1 / step,
        -least / step,
        [0, 2**bits - 1],
        axis=1,
        device=groups.device,
        dtype=torch.float32,
        opt_params=_HQQ,
    )
    # A tensor made in inference mode cannot be written to outside of it.
    codes, step, zero = codes.clone().byte(), 1 / scale, zero.clone()
    return codes, step, -zero * step


def _spread(groups: Groups, bits: int) -> tuple[Float[Tensor, "R 1"], Float[Tensor, "R 1"]]:
    least, largest = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (largest - least) / (2**bits - 1)
    # If all numbers are equal the step is 0, by which nothing can be divided. Any other step fits.
    return torch.where(step > 0, step, torch.ones_like(step)), least


BACKENDS: Mapping[str, Quantize] = {"minmax": minmax, "quanto": quanto, "hqq": hqq}
_PACKAGES = {"quanto": ("optimum", "optimum.quanto", "optimum-quanto"), "hqq": ("hqq",)}


def check_backend(name: str, bits: int) -> None:
    """Raise InvalidValueError if a back end is not installed or has no codes of `bits` bits."""
    if name == "quanto" and bits != 4:
        raise InvalidValueError(
            f"backend 'quanto' has codes of 4 bits, not of {bits}; use 'minmax' or 'hqq'"
        )
    packages = _PACKAGES.get(name, ())
    if not all(find_spec(each) for each in packages if "-" not in each):
        raise InvalidValueError(
            f"backend {name!r} needs a package that is not installed: pip install {packages[-1]}. "
            "Backend 'minmax' needs no package"
        )
