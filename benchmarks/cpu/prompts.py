"""The peak memory of reading whole prompts, with a full and with an evicted cache."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from transformers import DynamicCache

import kvpolicy
from benchmarks.bench import Bench, Cell
from benchmarks.cpu.cases import Narrow
from benchmarks.cpu.scale import Scale
from benchmarks.cpu.targets import PROMPT
from benchmarks.memory import extra_mib
from kvpolicy.huggingface.cache_argument import handed

RECIPE = "restkv"


def cells() -> Iterator[Cell[Scale]]:
    """Give the one comparison."""
    yield Cell(key="prompts/peak", measure=note_peaks)


def note_peaks(bench: Bench[Scale]) -> None:
    """Note the peaks of a long prompt."""
    scale = bench.scale
    shape = {"L": scale.prompt, "K": scale.held, **scale.narrow.shape}
    red = bench.red(f"decoding with {RECIPE}")
    full, evicted = (
        scale.alone(peak_mib, recipe, scale.held, scale.prompt, scale.narrow)
        for recipe in (None, RECIPE)
    )
    note = partial(bench.note, "prompts", shape=shape)
    cache = scale.narrow.cache_mib(scale.prompt)
    note("keys and values of a prompt", cache, "MiB", variant="full")
    note(PROMPT, full, "MiB", variant="full")
    note(PROMPT, evicted, "MiB", variant=RECIPE, failure=red)
    if full:
        note(PROMPT, evicted / full, "ratio", variant=RECIPE, against="full", failure=red)


@torch.inference_mode()
def peak_mib(recipe: str | None, budget: int, tokens: int, narrow: Narrow) -> float:
    """Return the MiB that reading a prompt takes at its peak; None is the full cache."""
    model = narrow.build()

    def read(length: int) -> None:
        ids = torch.randint(0, 128, (1, length))
        policy = None if recipe is None else kvpolicy.recipe(recipe, budget=budget)
        cache = DynamicCache(config=model.config) if policy is None else policy.cache(model)
        model(input_ids=ids, **handed(cache, to=model), logits_to_keep=1)

    # The first prompt loads libraries and starts their threads.
    read(min(tokens, 2 * budget))
    return extra_mib(lambda: read(tokens))
