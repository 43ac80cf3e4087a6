"""What Triton kernels share that make logits: rows, products, caps and sums of powers of two."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN201, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import math

import triton
import triton.language as tl

LOG2_E = tl.constexpr(math.log2(math.e))


def base_2(scaling: float, softcap: float | None) -> tuple[float, float | None]:
    """Return the numbers of `capped`: 2 to the power of its logits is their exponential."""
    log2_e = math.log2(math.e)
    if softcap is None:
        return scaling * log2_e, None
    return 2 * scaling / softcap * log2_e, softcap * log2_e


@triton.jit
def load_rows(rows, inside, d, dim_stride, D: tl.constexpr, UP: tl.constexpr):
    """Load the channels d of rows; those that are not `inside` are zeros."""
    mask = inside[:, None] & (d < D)[None, :]
    loaded = tl.load(rows[:, None] + d[None, :] * dim_stride, mask=mask, other=0)
    return loaded.to(tl.float32) if UP else loaded


@triton.jit
def products_by_parts(
    rows, valid, dim_stride, key_rows, inside, keys_d,
    D: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Multiply rows and key rows, a few channels at a time, reading both anew."""
    total = tl.zeros([rows.shape[0], key_rows.shape[0]], tl.float32)
    for channel in range(0, D, CHANNELS):
        d = channel + tl.arange(0, CHANNELS).to(tl.int64)
        block = load_rows(rows, valid, d, dim_stride, D, UP)
        keys = load_rows(key_rows, inside, d, keys_d, D, UP)
        total = tl.dot(block, tl.trans(keys), total, input_precision=PRECISION)
    return total


@triton.jit
def capped(products, scale, softcap):
    """Make logits of products, by the numbers of `base_2`."""
    logits = products * scale
    if softcap is not None:
        # tanh(x) = 1 - 2 / (1 + exp(2 x)); the factor 2 is in `scale`.
        logits = softcap * (1 - 2 / (1 + tl.exp2(logits)))
    return logits


@triton.jit
def finite_or_zero(peak):
    """Return what to subtract from logits: a row may see nothing, and -inf - -inf is no number."""
    return tl.where(peak == float("-inf"), 0.0, peak)


@triton.jit
def sink_of(sinks, h, valid):
    """Return the peak and mass of rows of heads h that have seen nothing yet but their sink."""
    peak = tl.load(sinks + h, mask=valid, other=float("-inf")).to(tl.float32) * LOG2_E
    return peak, tl.where(peak == float("-inf"), 0.0, 1.0)


@triton.jit
def log2_sum(peak, mass):
    """Return log2(2 ** peak * mass). A NaN stands in the mass: the peak of a row skips it."""
    # No log2(0), of which the interpreter warns: where there is no mass, the peak is -inf.
    return peak + tl.log2(tl.where(mass == 0, 1.0, mass))
