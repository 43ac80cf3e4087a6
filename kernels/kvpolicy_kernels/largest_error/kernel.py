"""The Triton kernels: the largest weight, the values of the others, and its error, by head."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.largest_error import reference
from kvpolicy_kernels.largest_error.reference import LargestError
from kvpolicy_kernels.weighted_values.kernel import partial_sums

BLOCK_S = 2048
"""Weights of a row that a program reads at once."""
WARPS = 8
BLOCK_NUMBERS = 2048
"""Numbers of a factor that a program multiplies at once."""
LEAST = tl.constexpr(torch.finfo(torch.float32).tiny)
LEAST_REST = tl.constexpr(reference.LEAST_REST)


def unsupported(attention: Tensor, values: Tensor, *factors: Tensor) -> str | None:
    """Return why the kernels cannot take this attention, values and factors; None if they can."""
    return launch.refusal(attention[..., :1], values, *factors)


@triton.jit
def _largest_kernel(
    attention, places, rests, H, S, SUMMED, attention_b, attention_h, attention_s,
    SINKS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    row = attention + head // H * attention_b + head % H * attention_h
    lane = tl.arange(0, BLOCK_S).to(tl.int64)
    largest = tl.full([BLOCK_S], float("-inf"), tl.float32)
    where = tl.zeros([BLOCK_S], tl.int64)
    for start in range(0, SUMMED, BLOCK_S):
        s = start + lane
        a = tl.load(row + s * attention_s, mask=s < SUMMED, other=float("-inf")).to(tl.float32)
        where = tl.where(a > largest, s, where)
        largest = tl.maximum(largest, a)
    # Of equal weights the first one counts.
    place = tl.min(tl.where(largest == tl.max(largest, 0), where, SUMMED - 1), 0)
    others = tl.zeros([BLOCK_S], tl.float32)
    for start in range(0, S, BLOCK_S):
        s = start + lane
        mask = (s < S) & (s != place)
        others += tl.load(row + s * attention_s, mask=mask, other=0).to(tl.float32)
    rest = tl.sum(others, 0)
    if SINKS:
        weight = tl.load(row + place * attention_s).to(tl.float32)
        rest += tl.maximum(1 - rest - weight, 0.0)
    tl.store(places + head, place)
    tl.store(rests + head, rest)


@triton.jit
def _largest_error_kernel(
    attention, partials, rests, places, values, factors, outputs, errors, tau,
    H, G, R, SPLITS, partials_split,
    attention_b, attention_h, attention_s,
    values_b, values_n, values_s, values_d,
    factors_h, factors_r, factors_d,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    b, h = head // H, head % H
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    place, rest = tl.load(places + head), tl.load(rests + head)
    at = attention + b * attention_b + h * attention_h + place * attention_s
    weight = tl.load(at).to(tl.float32)
    row = values + b * values_b + h // G * values_n + place * values_s
    value = tl.load(row + d * values_d, mask=d < D, other=0).to(tl.float32)
    other = tl.zeros([BLOCK_D], tl.float32)
    for split in range(SPLITS):
        other += tl.load(partials + split * partials_split + head * D + d, mask=d < D, other=0.0)
    tl.store(outputs + head * D + d, other + weight * value, mask=d < D)
    missing = other / tl.maximum(rest, LEAST) - value
    if factors is None:
        squares = tl.sum(missing * missing, 0)
    else:
        squares = tl.zeros([], tl.float32)
        for start in range(0, R, BLOCK_R):
            r = start + tl.arange(0, BLOCK_R).to(tl.int64)
            factor = factors + h * factors_h + r[:, None] * factors_r + d[None, :] * factors_d
            inside = (r < R)[:, None] & (d < D)[None, :]
            factor = tl.load(factor, mask=inside, other=0).to(tl.float32)
            product = tl.sum(factor * missing[None, :], 1)
            squares += tl.sum(product * product, 0)
    norm = tl.sqrt(squares)
    if tau is None:
        error = weight * norm
    else:
        power = tl.exp2(tau * tl.log2(tl.where(norm == 0, 1.0, norm)))
        of_rest = tl.exp2((tau - 1) * tl.log2(tl.maximum(rest, LEAST_REST)))
        error = weight * tl.where(norm == 0, 0.0, power) * of_rest
    tl.store(errors + head, error)


def largest_error(
    attention: Float[Tensor, "B H S"],
    values: Float[Tensor, "B N S D"],
    factors: Float[Tensor, "H R D"] | None,
    *,
    summed: int,
    tau: float = 1.0,
    learned_sinks: bool = False,
) -> LargestError:
    """Compute in three launches: the largest weights, the sums of the others, and the errors."""
    batch, heads, length = attention.shape
    dim, device = values.shape[-1], values.device
    place = torch.empty(batch, heads, 1, dtype=torch.int64, device=device)
    rest, error = torch.empty(2, batch, heads, 1, dtype=torch.float32, device=device)
    output = torch.empty(batch, heads, dim, dtype=torch.float32, device=device)
    if place.numel() == 0:
        return LargestError(place, output, error)
    block, strides = triton.next_power_of_2(dim), attention.stride()
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(values):
        _largest_kernel[(batch * heads,)](
            attention, place, rest, heads, length, summed, *strides,
            SINKS=learned_sinks, BLOCK_S=BLOCK_S, num_warps=WARPS,
        )  # fmt: skip
        others = partial_sums(attention[..., :summed], values[:, :, :summed], without=place)
        _largest_error_kernel[(batch * heads,)](
            attention, others, rest, place, values, factors, output, error,
            None if tau == 1 else tau, heads, heads // values.shape[1],
            0 if factors is None else factors.shape[1], len(others), others.stride(0), *strides,
            *values.stride(), *(factors.stride() if factors is not None else (0, 0, 0)),
            D=dim, BLOCK_D=block, BLOCK_R=max(1, BLOCK_NUMBERS // block),
        )  # fmt: skip
    return LargestError(place, output, error)
