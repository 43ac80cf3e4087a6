"""Situations of a serving engine: how requests arrive, are read, and lose their blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch

from kvpolicy.evaluation.serving.engine import Arrival

LENGTHS = (200, 100, 64, 300, 33, 10, 257, 160)
"""Lengths of the prompts: shorter than the budget, at a block's end, and long."""


@attrs.frozen(kw_only=True)
class Situation:
    """Options of the engine, and when the requests arrive."""

    arrivals: Callable[[int], Sequence[Arrival]]
    options: Mapping[str, Any] = attrs.field(factory=dict)
    preempts: bool = False


def prompts(vocabulary: int, lengths: Sequence[int] = LENGTHS, seed: int = 1) -> list[list[int]]:
    """Return random prompts, without the first tokens of a vocabulary, which mean something."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return [
        torch.randint(3, vocabulary, (length,), generator=generator, device="cpu").tolist()
        for length in lengths
    ]


def _at_once(vocabulary: int) -> list[Arrival]:
    return [Arrival(prompt=each) for each in prompts(vocabulary)]


def _mixed(vocabulary: int) -> list[Arrival]:
    steps = (0, 0, 1, 3, 4, 4, 7, 9)
    return [
        Arrival(prompt=each, step=step, tokens=8 + 3 * step)
        for each, step in zip(prompts(vocabulary), steps, strict=True)
    ]


def _many_tokens(vocabulary: int) -> list[Arrival]:
    found = prompts(vocabulary, (300, 290, 310, 280))
    return [Arrival(prompt=each, tokens=110) for each in found]


def _mixed_with_long_answers(vocabulary: int) -> list[Arrival]:
    return [attrs.evolve(each, tokens=60) for each in _mixed(vocabulary)]


TIGHT = {"num_gpu_blocks_override": 17, "max_model_len": 512}
"""A pool of 16 blocks, which is what one request of the longest kind needs."""

SITUATIONS: Mapping[str, Situation] = {
    "one batch": Situation(arrivals=_at_once),
    "mixed arrivals": Situation(arrivals=_mixed),
    "chunked prefill": Situation(arrivals=_mixed, options={"max_num_batched_tokens": 48}),
    "chunks of 11 tokens": Situation(arrivals=_at_once, options={"max_num_batched_tokens": 11}),
    "preemption": Situation(
        arrivals=_many_tokens,
        options=TIGHT,
        preempts=True,
    ),
    "all together": Situation(
        arrivals=_mixed_with_long_answers,
        options={**TIGHT, "max_num_batched_tokens": 48},
        preempts=True,
    ),
}
"""Each serves 8 requests of different lengths, or 4 that do not fit into the pool together."""
