"""What is measured, in the order of its worth: what comes last may find no time left."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu import attention, ceilings, checks, decode, eviction, kernels, prefill
from benchmarks.gpu.bench import Cell
from benchmarks.gpu.models import MODELS
from benchmarks.gpu.scale import Scale


def cells(scale: Scale) -> list[Cell]:
    """Return all measurements."""
    return list(_toy(scale) if scale.toy else _real(scale))


def _real(scale: Scale) -> Iterator[Cell]:
    llama, mistral = MODELS
    first, others = (4096, 32_768, 131_072), (16_384, 65_536, 8192)
    yield from ceilings.cells(scale)
    yield from checks.cells(scale)
    yield from eviction.cells(scale, first)
    yield from kernels.compaction_cells(scale)
    yield from decode.cells(scale, llama, [(1, 131_072), (8, 65_536)])
    yield from attention.cells([(1, 131_072), (8, 65_536)])
    yield from prefill.memory_cells(scale, llama, [131_072])
    timed = scale.timed_layers
    yield from prefill.time_cells(scale, llama, [(1, length) for length in first], timed)
    yield from kernels.cells(scale, first)
    yield from decode.cells(scale, llama, [(8, 32_768), (1, 32_768)])
    yield from attention.cells([(8, 32_768), (1, 32_768)])
    yield from eviction.cells(scale, others)
    yield from prefill.time_cells(scale, llama, [(1, 16_384), (8, 4096), (8, 16_384)], timed)
    yield from prefill.memory_cells(scale, llama, [32_768])
    yield from kernels.cells(scale, others)
    yield from decode.cells(scale, mistral, [(1, 131_072)])
    yield from prefill.time_cells(scale, mistral, [(1, 32_768)], timed)
    yield from prefill.memory_cells(scale, mistral, [131_072])
    yield from prefill.time_cells(scale, llama, [(1, 65_536), (1, 8192)], timed)
    yield from decode.cells(scale, llama, [(1, 4096), (8, 4096)])
    yield from attention.cells([(1, 4096), (8, 4096)])


def _toy(scale: Scale) -> Iterator[Cell]:
    llama, mistral = MODELS
    lengths = scale.lengths
    yield from ceilings.cells(scale)
    yield from checks.cells(scale)
    yield from eviction.cells(scale, lengths)
    yield from kernels.compaction_cells(scale)
    yield from kernels.cells(scale, lengths)
    yield from decode.cells(scale, llama, [(1, lengths[1]), (2, lengths[0])])
    yield from attention.cells([(1, lengths[1]), (2, lengths[0])])
    yield from prefill.time_cells(scale, mistral, [(2, lengths[0])], scale.timed_layers)
    yield from prefill.memory_cells(scale, llama, [lengths[1]])
