"""A binary search in numbers that ascend, for one value or for a block of values."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN201, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def first_of(ordered, value, E, STEPS):
    """Return the first of E places whose number is at least `value`; E if there is none.

    STEPS is the bit length of E.
    """
    low = value * 0
    high = low + E
    for _ in range(STEPS):
        searches = low < high
        middle = (low + high) // 2
        below = tl.load(ordered + middle, mask=searches, other=0) < value
        low = tl.where(searches & below, middle + 1, low)
        high = tl.where(searches & (below == 0), middle, high)
    return low
