"""Parts of Triton kernels that compute logits: rows, products, caps, sums of powers of 2."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN201, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import math

import triton
import triton.language as tl

LOG2_E = tl.constexpr(math.log2(math.e))


def base_2(scaling: float, softcap: float | None) -> tuple[float, float | None]:
    """Return `scale` and `softcap` for `capped`, whose logits are to the base 2.

    exp(logit) is then 2 ** capped(product, scale, softcap).
    """
    log2_e = math.log2(math.e)
    if softcap is None:
        return scaling * log2_e, None
    return 2 * scaling / softcap * log2_e, softcap * log2_e


@triton.jit
def load_rows(rows, inside, d, dim_stride, D: tl.constexpr, UP: tl.constexpr):
    """Load the channels d of rows; rows that are not `inside` are zeros. UP converts to float32."""
    mask = inside[:, None] & (d < D)[None, :]
    loaded = tl.load(rows[:, None] + d[None, :] * dim_stride, mask=mask, other=0)
    return loaded.to(tl.float32) if UP else loaded


@triton.jit
def products_by_parts(
    rows, valid, dim_stride, key_rows, inside, keys_d,
    D: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Multiply rows and key rows, CHANNELS at a time; both are read from memory."""
    total = tl.zeros([rows.shape[0], key_rows.shape[0]], tl.float32)
    for channel in range(0, D, CHANNELS):
        d = channel + tl.arange(0, CHANNELS).to(tl.int64)
        block = load_rows(rows, valid, d, dim_stride, D, UP)
        keys = load_rows(key_rows, inside, d, keys_d, D, UP)
        total = tl.dot(block, tl.trans(keys), total, input_precision=PRECISION)
    return total


@triton.jit
def capped(products, scale, softcap):
    """Return the logits of products, with `scale` and `softcap` from `base_2`."""
    logits = products * scale
    if softcap is not None:
        # tanh(x) = 1 - 2 / (1 + exp(2 x)); the factor 2 is in `scale`.
        logits = softcap * (1 - 2 / (1 + tl.exp2(logits)))
    return logits


@triton.jit
def finite_or_zero(peak):
    """Return the peak, or 0 for a row that sees nothing: -inf - -inf would be NaN."""
    return tl.where(peak == float("-inf"), 0.0, peak)


@triton.jit
def sink_of(sinks, h, valid):
    """Return peak and mass of rows of heads h that have only seen their learned sink."""
    peak = tl.load(sinks + h, mask=valid, other=float("-inf")).to(tl.float32) * LOG2_E
    return peak, tl.where(peak == float("-inf"), 0.0, 1.0)


@triton.jit
def log2_sum(peak, mass):
    """Return log2(2 ** peak * mass). A NaN logit is in the mass: the peak skips it."""
    # The interpreter warns of log2(0). A row without mass has a peak of -inf: any number does.
    return peak + tl.log2(tl.where(mass == 0, 1.0, mass))
