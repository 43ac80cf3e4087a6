"""The operations behind kvpolicy_kernels' doors: their inputs at real shapes, and what is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from benchmarks.gpu import calls
from benchmarks.gpu.calls import Call
from benchmarks.gpu.inputs import Source


@attrs.frozen(kw_only=True)
class Operation:
    """One door: `prepare` draws its inputs and returns the call."""

    name: str
    room: str
    prepare: Callable[[Source], Call]
    bytes_moved: Callable[[Source], int]
    """What must be read and written at least, in bytes."""
    tolerance: Mapping[torch.dtype, float]
    """How far a kernel may be from the reference, as a share of the reference's largest number."""
    longest: int = 2**20
    against: Callable[[Source], Mapping[str, Call]] = lambda source: {}
    """What it is compared with beside its reference."""


EXACT = {torch.float32: 0.0, torch.bfloat16: 0.0}
# float32: sums in another order, exp2 for exp. bfloat16 inputs are exact in both; a kernel rounds
# probabilities and factors (8 bits) before the tensor cores.
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
# Outputs of the inputs' type: one rounding.
ROUNDED = {torch.float32: 1e-5, torch.bfloat16: 2**-7}


def _kv(source: Source) -> int:
    return source.scale.kv_heads * source.length * source.scale.dim * source.dtype.itemsize


def _floats(source: Source) -> int:
    """Bytes of one float32 number for every query head and position."""
    return 4 * source.scale.heads * source.length


def _gathered(source: Source) -> int:
    kept = min(source.scale.budget, source.length // 2)
    return 4 * _kv(source) * kept // source.length


OPERATIONS = (
    Operation(
        name="window_attention", room="window_attention", prepare=calls.window_attention,
        bytes_moved=lambda source: _kv(source) + _floats(source), tolerance=CLOSE,
    ),
    Operation(
        name="weighted_values", room="weighted_values", prepare=calls.weighted_values,
        bytes_moved=lambda source: _kv(source) + _floats(source), tolerance=CLOSE,
    ),
    Operation(
        name="reconstruction_error", room="reconstruction_error",
        prepare=calls.reconstruction_error,
        bytes_moved=lambda source: _kv(source) + 2 * _floats(source), tolerance=CLOSE,
    ),
    Operation(
        name="row_statistics", room="row_statistics", prepare=calls.row_statistics,
        # Two logits closer than their rounding may change places at the cut: of a thousand
        # positions averaged, one.
        bytes_moved=_kv, tolerance={torch.float32: 1e-2, torch.bfloat16: 1e-2},
    ),
    Operation(
        name="pool_scores", room="pool_scores", prepare=calls.pool_scores,
        bytes_moved=lambda source: 2 * _floats(source),
        tolerance={torch.float32: 1e-5, torch.bfloat16: 1e-5},
    ),
    Operation(
        name="select", room="select", prepare=calls.select, tolerance=EXACT,
        bytes_moved=lambda source: 4 * source.scale.kv_heads * source.length,
    ),
    Operation(
        name="gather_kv", room="gather_kv", prepare=calls.gather_kv, tolerance=EXACT,
        bytes_moved=_gathered,
    ),
    Operation(
        name="rerotate_keys", room="rerotate_keys", prepare=calls.rerotate_keys, tolerance=ROUNDED,
        bytes_moved=lambda source: 2 * _kv(source)
        + 16 * source.scale.kv_heads * source.length * source.scale.dim,
    ),
    Operation(
        name="ragged_attention", room="ragged_attention", prepare=calls.ragged_attention,
        bytes_moved=lambda source: 2 * _kv(source), tolerance=CLOSE, against=calls.other_attention,
    ),
    Operation(
        name="column_attention", room="column_attention", prepare=calls.column_attention,
        bytes_moved=lambda source: 2 * _kv(source), tolerance=CLOSE, longest=16_384,
    ),
)  # fmt: skip


def difference(result: Any, expected: Any) -> float:
    """Return the largest difference as a share of the largest expected number; inf if unlike."""
    worst = 0.0
    for ours, theirs in zip(_tensors(result), _tensors(expected), strict=True):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return math.inf
        if torch.equal(ours, theirs):
            continue
        gap = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()
        worst = max(worst, float(gap.nan_to_num(nan=math.inf)))
    return worst


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    else:
        for part in result:
            yield from _tensors(part)
