"""The operations behind the doors of kvpolicy_kernels, and how far a kernel may be off."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from benchmarks.gpu import calls
from benchmarks.gpu.calls import Call
from benchmarks.gpu.scale import Scale
from benchmarks.layers import Source


@attrs.frozen(kw_only=True)
class Operation:
    """One door: `prepare` draws its inputs and returns the call."""

    name: str
    room: str
    prepare: Callable[[Source[Scale]], Call]
    bytes_moved: Callable[[Source[Scale]], int]
    """The bytes that any implementation reads and writes."""
    tolerance: Mapping[torch.dtype, float]
    """How far a kernel may be from the reference, as a share of the reference's largest number."""
    longest: int = 2**20
    against: Callable[[Source[Scale]], Mapping[str, Call]] = lambda source: {}
    """What else it is compared with."""


EXACT = {torch.float32: 0.0, torch.bfloat16: 0.0}
# In float32 a kernel adds in another order, and uses exp2 for exp. bfloat16 inputs are exact in
# both, but a kernel rounds probabilities and factors to 8 bits for the tensor cores.
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
# Outputs are rounded once, to the dtype of the inputs.
ROUNDED = {torch.float32: 1e-5, torch.bfloat16: 2**-7}


def _kv(source: Source[Scale]) -> int:
    return source.scale.kv_heads * source.length * source.scale.dim * source.dtype.itemsize


def _floats(source: Source[Scale]) -> int:
    """Bytes of one float32 number for every query head and position."""
    return 4 * source.scale.heads * source.length


def _gathered(source: Source[Scale]) -> int:
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
        # Two logits that are closer than their rounding may change places at the cut. That changes
        # one of the thousand positions that are averaged.
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
        # Arithmetic limits it: each value is multiplied with the whole projection.
        name="projected_norms", room="projected_norms", prepare=calls.projected_norms,
        bytes_moved=_kv, tolerance=CLOSE, longest=16_384,
    ),
    Operation(
        name="column_attention", room="column_attention", prepare=calls.column_attention,
        bytes_moved=lambda source: 2 * _kv(source), tolerance=CLOSE, longest=16_384,
    ),
)  # fmt: skip


def difference(result: Any, expected: Any) -> float:
    """Return the largest difference as a share of the largest expected number.

    Infinity if shapes or dtypes differ, or if a number is NaN.
    """
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
