"""The Triton kernel: a program has one query head."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.largest_error import reference
from kvpolicy_kernels.largest_error.reference import LargestError

BLOCK_NUMBERS = 2048
"""Numbers of a factor that a program multiplies at once."""
LEAST = tl.constexpr(torch.finfo(torch.float32).tiny)
LEAST_REST = tl.constexpr(reference.LEAST_REST)


def unsupported(*tensors: Tensor) -> str | None:
    """Return why the kernel cannot take these values, outputs and factors; None if it can."""
    return launch.refusal(*tensors)


@triton.jit
def _largest_error_kernel(
    others, weights, rests, places, values, factors, outputs, errors, tau,
    H, G, R,
    values_b, values_n, values_s, values_d,
    factors_h, factors_r, factors_d,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    b, h = head // H, head % H
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    weight, rest = tl.load(weights + head), tl.load(rests + head)
    row = values + b * values_b + h // G * values_n + tl.load(places + head) * values_s
    value = tl.load(row + d * values_d, mask=d < D, other=0).to(tl.float32)
    other = tl.load(others + head * D + d, mask=d < D, other=0.0)
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
    others: Float[Tensor, "B H D"],
    weight: Float[Tensor, "B H 1"],
    rest: Float[Tensor, "B H 1"],
    place: Int[Tensor, "B H 1"],
    values: Float[Tensor, "B N S D"],
    factors: Float[Tensor, "H R D"] | None,
    *,
    tau: float = 1.0,
) -> LargestError:
    """Compute outputs and errors in one launch."""
    batch, heads, dim = others.shape
    output = torch.empty(others.shape, dtype=torch.float32, device=others.device)
    error = torch.empty(weight.shape, dtype=torch.float32, device=others.device)
    if output.numel() == 0:
        return LargestError(output, error.zero_())
    block = triton.next_power_of_2(dim)
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(others):
        _largest_error_kernel[(batch * heads,)](
            *(each.float().contiguous() for each in (others, weight, rest)), place.contiguous(),
            values, factors, output, error, None if tau == 1 else tau,
            heads, heads // values.shape[1], 0 if factors is None else factors.shape[1],
            *values.stride(), *(factors.stride() if factors is not None else (0, 0, 0)),
            D=dim, BLOCK_D=block, BLOCK_R=max(1, BLOCK_NUMBERS // block),
        )  # fmt: skip
    return LargestError(output, error)
