"""The Triton kernels: one finds the heirs of evicted rows, one adds up what each heir gets."""

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
from kvpolicy_kernels.common.triton.search import first_of
from kvpolicy_kernels.heirs.reference import Heirs
from kvpolicy_kernels.summed_rows.kernel import summed_rows

BLOCK_E = 128
BLOCK_K = 8


def unsupported(*tensors: Tensor) -> str | None:
    """Return why the kernels cannot take these tensors; None if they can."""
    tables = [tensor for tensor in tensors if tensor.dim() == 4]
    return launch.refusal(*tables) or launch.refusal(*tensors, largest_dim=2**30)


@triton.jit
def _heirs_kernel(
    attention, draws, kept, evicted, firsts, shares,
    N, S, K, E, STEPS, MOST,
    attention_b, attention_n, attention_s,
    draws_b, draws_n, draws_s,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    b, n = head // N, head % N
    e = tl.program_id(1).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    inside = e < E
    row = tl.load(evicted + head * E + e, mask=inside, other=S).to(tl.int64)
    exists = row < S
    kept += head * K
    attention += b * attention_b + n * attention_n
    # Fillers come after all kept rows.
    number = first_of(kept, row * 0 + S, K, STEPS)
    first = first_of(kept, row, K, STEPS)
    count = tl.minimum(tl.maximum(number - first, 0), MOST)
    total = tl.zeros([BLOCK_E], tl.float32)
    for place in range(MOST):
        is_heir = place < count
        heir = tl.load(kept + first + place, mask=is_heir, other=0).to(tl.int64)
        total += tl.load(attention + heir * attention_s, mask=is_heir, other=0).to(tl.float32)
    own = tl.load(attention + row * attention_s, mask=exists, other=0).to(tl.float32)
    draw = draws + b * draws_b + n * draws_n + row * draws_s
    drawn = tl.load(draw, mask=exists, other=1).to(tl.float32)
    # drawn < own / (total / count) without a division by 0. Without any attention, or with a number
    # that is none, nothing is merged.
    number_of = tl.maximum(count, 1).to(tl.float32)
    leaves = (drawn * total < own * number_of) & (count > 0)
    share = tl.where(leaves, 1.0 / number_of, 0.0)
    tl.store(firsts + head * E + e, tl.minimum(first, K - 1), mask=inside)
    tl.store(shares + head * E + e, share, mask=inside)


@triton.jit
def _inherited_kernel(
    begun, kept, inherited,
    N, K, MOST,
    kept_b, kept_n, kept_k, kept_d,
    D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, FLOAT: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    b, n = head // N, head % N
    k = tl.program_id(0).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)[:, None]
    d = tl.arange(0, BLOCK_D).to(tl.int64)[None, :]
    inside = (k < K) & (d < D)
    begun += head * K * D + d
    total = tl.zeros([BLOCK_K, BLOCK_D], FLOAT)
    for back in range(MOST):
        slot = k - (MOST - 1 - back)
        total += tl.load(begun + slot * D, mask=inside & (slot >= 0), other=0)
    own = kept + b * kept_b + n * kept_n + k * kept_k + d * kept_d
    total += tl.load(own, mask=inside, other=0).to(tl.float32).to(FLOAT)
    tl.store(inherited + (head * K + k) * D + d, total.to(tl.float32), mask=inside)


def heirs(
    attention: Float[Tensor, "B N S"],
    draws: Float[Tensor, "B N S"],
    kept: Int[Tensor, "B N K"],
    evicted: Int[Tensor, "B N E"],
    most: int,
) -> Heirs:
    """Search for the first heir of each evicted row, and walk over all of them, in one launch."""
    batch, heads, length = attention.shape
    slots, chosen = kept.shape[2], evicted.shape[2]
    first = torch.empty(evicted.shape, dtype=torch.int32, device=kept.device)
    shares = torch.empty(evicted.shape, dtype=torch.float32, device=kept.device)
    if first.numel() == 0:
        return Heirs(first, shares)
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(attention):
        _heirs_kernel[(batch * heads, triton.cdiv(chosen, BLOCK_E))](
            attention, draws, kept.contiguous(), evicted.contiguous(), first, shares,
            heads, length, slots, chosen, slots.bit_length(), min(most, slots),
            *attention.stride(), *draws.stride(), BLOCK_E=BLOCK_E,
        )  # fmt: skip
    return Heirs(first, shares)


def inherited_values(
    kept: Float[Tensor, "B N K Dv"],
    values: Float[Tensor, "B N S Dv"],
    evicted: Int[Tensor, "B N E"],
    first: Int[Tensor, "B N E"],
    shares: Float[Tensor, "B N E"],
    most: int,
) -> Float[Tensor, "B N K Dv"]:
    """Add up values at the slot of their first heir in one launch, and over all heirs in another.

    Evicted rows ascend, and so do the slots of their first heirs.
    """
    batch, heads, slots, dim = kept.shape
    # The interpreter truncates where a GPU rounds: round in PyTorch.
    stored = torch.float32 if launch.INTERPRETED else kept.dtype
    inherited = torch.empty(kept.shape, dtype=stored, device=kept.device)
    if inherited.numel() == 0:
        return inherited.to(kept.dtype)
    (begun,) = summed_rows([values], evicted, first, shares, count=slots, ascending=True)
    # Triton launches on the current device. This layer may be on another one.
    with torch.cuda.device_of(kept):
        _inherited_kernel[(triton.cdiv(slots, BLOCK_K), batch * heads)](
            begun, kept, inherited, heads, slots, min(most, slots), *kept.stride(),
            D=dim, BLOCK_K=BLOCK_K, BLOCK_D=triton.next_power_of_2(dim),
            FLOAT=tl.float64 if begun.dtype == torch.float64 else tl.float32,
        )  # fmt: skip
    return inherited.to(kept.dtype)
