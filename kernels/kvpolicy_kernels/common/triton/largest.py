"""The largest numbers of a row by radix, eight bits at a time; one program takes one row."""

# Triton has no types, and its kernels name their sizes by the letters of the shapes.
# ruff: noqa: ANN001, ANN201, N803
# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

BLOCK_S = 2048
WARPS = 8
STAGES = 3


@triton.jit
def ordered(numbers):
    """Return the numbers as uint32 in the same order. NaN counts as -inf, and -0.0 as 0.0."""
    bits = numbers.to(tl.float32).to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    bits = tl.where(magnitude > 0x7F800000, 0xFF800000, bits)
    bits = tl.where(magnitude == 0, 0, bits)
    return bits ^ tl.where(bits > 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000)


@triton.jit
def read(row, stride, start, S, BLOCK_S: tl.constexpr):
    """Return a block's positions, whether each exists, and its numbers as `ordered`."""
    s = start + tl.arange(0, BLOCK_S)
    inside = s < S
    return s, inside, ordered(tl.load(row + s.to(tl.int64) * stride, mask=inside, other=0.0))


@triton.jit
def threshold_of(row, stride, S, room, BLOCK_S: tl.constexpr, STAGES: tl.constexpr):
    """Return the `room`-th largest of S numbers, and how many equal to it are among the largest."""
    threshold = tl.full((), 0, tl.uint32)
    unknown = tl.full((), 0xFFFFFFFF, tl.uint32)
    for place in range(4):
        shift = 24 - 8 * place
        counts = tl.zeros((256,), tl.int32)
        for start in tl.range(0, S, BLOCK_S, num_stages=STAGES):
            _, inside, numbers = read(row, stride, start, S, BLOCK_S)
            alike = inside & ((numbers ^ threshold) <= unknown)
            # Other numbers count as digit 0. Nothing below depends on how many digits are 0.
            digits = tl.where(alike, (numbers >> shift) & 255, 0)
            counts += tl.histogram(digits.to(tl.int32), 256)
        at_least = tl.cumsum(counts, 0, reverse=True)
        digit = tl.sum((at_least >= room).to(tl.int32), 0) - 1
        room -= tl.sum(tl.where(tl.arange(0, 256) > digit, counts, 0), 0)
        threshold |= digit.to(tl.uint32) << shift
        unknown = unknown >> 8
    return threshold, room


@triton.jit
def taken(numbers, inside, threshold, room):
    """Mark numbers above the threshold and the first `room` equal to it; return the room left."""
    equal = (inside & (numbers == threshold)).to(tl.int32)
    first = (equal == 1) & (tl.cumsum(equal, 0) <= room)
    return first | (inside & (numbers > threshold)), room - tl.sum(equal, 0)
