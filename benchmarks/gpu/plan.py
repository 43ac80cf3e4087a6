"""What is measured on a GPU. The most valuable comes first: there may be no time for the last."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Cell
from benchmarks.gpu import (
    attention,
    ceilings,
    checks,
    decode,
    eviction,
    generation,
    kernels,
    prefill,
    recipes,
)
from benchmarks.gpu.generation import Prompts
from benchmarks.gpu.models import MODELS
from benchmarks.gpu.scale import Scale


def cells(scale: Scale) -> list[Cell[Scale]]:
    """Return all measurements."""
    return list(_toy(scale) if scale.toy else _real(scale))


def _real(scale: Scale) -> Iterator[Cell[Scale]]:
    llama, mistral = MODELS
    first, others = (4096, 32_768, 131_072), (16_384, 65_536, 8192)
    yield from ceilings.cells()
    yield from checks.cells()
    yield from eviction.cells(first)
    yield from kernels.compaction_cells(scale)
    yield from decode.cells(llama, [(1, 131_072), (8, 65_536)])
    yield from attention.cells([(1, 131_072), (8, 65_536)])
    yield from prefill.memory_cells(llama, [131_072])
    timed = scale.timed_layers
    yield from prefill.time_cells(llama, [(1, length) for length in first], timed)
    prompts = [
        Prompts(rows=1, length=32_768),
        Prompts(rows=8, length=4096),
        Prompts(rows=8, length=4096, padded=True),
    ]
    yield from checks.later_cells()
    yield from generation.cells(llama, prompts[:1])
    yield from recipes.cells([(1, 32_768), (8, 4096)])
    yield from generation.cells(llama, prompts[:1], compiled=True)
    yield from generation.cells(llama, prompts[1:])
    yield from kernels.cells(scale, first)
    yield from decode.cells(llama, [(8, 32_768), (1, 32_768)])
    yield from attention.cells([(8, 32_768), (1, 32_768)])
    yield from eviction.cells(others)
    yield from prefill.time_cells(llama, [(1, 16_384), (8, 4096), (8, 16_384)], timed)
    yield from prefill.memory_cells(llama, [32_768])
    yield from kernels.cells(scale, others)
    yield from decode.cells(mistral, [(1, 131_072)])
    yield from prefill.time_cells(mistral, [(1, 32_768)], timed)
    yield from prefill.memory_cells(mistral, [131_072])
    yield from prefill.time_cells(llama, [(1, 65_536), (1, 8192)], timed)
    yield from decode.cells(llama, [(1, 4096), (8, 4096)])
    yield from attention.cells([(1, 4096), (8, 4096)])


def _toy(scale: Scale) -> Iterator[Cell[Scale]]:
    llama, mistral = MODELS
    lengths = scale.lengths
    yield from ceilings.cells()
    yield from checks.cells()
    yield from checks.later_cells()
    yield from eviction.cells(lengths)
    yield from kernels.compaction_cells(scale)
    yield from kernels.cells(scale, lengths)
    yield from decode.cells(llama, [(1, lengths[1]), (2, lengths[0])])
    yield from attention.cells([(1, lengths[1]), (2, lengths[0])])
    yield from prefill.time_cells(mistral, [(2, lengths[0])], scale.timed_layers)
    yield from prefill.memory_cells(llama, [lengths[1]])
    yield from recipes.cells([(1, lengths[1]), (2, lengths[0])])
    prompts = [Prompts(rows=1, length=lengths[1]), Prompts(rows=2, length=lengths[0], padded=True)]
    yield from generation.cells(llama, prompts)
    yield from generation.cells(llama, prompts[:1], compiled=True)
