"""What a PolicyCache adds to a decode step: the seconds of each part of one layer's share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import DynamicCache

import kvpolicy
from benchmarks.bench import Bench, Cell
from benchmarks.cpu.decode import EVERY_TOKEN
from benchmarks.cpu.scale import Scale
from kvpolicy.exactness.usages import tokens
from kvpolicy.huggingface.attention.arguments import Call
from kvpolicy.huggingface.cache_argument import handed
from kvpolicy.testing.models import tiny_model

RECIPES = ("snapkv", "restkv", "adakv", *EVERY_TOKEN)
HELD, LEAST_STEPS = 64, 20


def cells() -> Iterator[Cell[Scale]]:
    """Give each recipe, and transformers' own cache."""
    for recipe in RECIPES:
        yield Cell(key=f"parts/{recipe}", measure=partial(note_parts, recipe=recipe))
    yield Cell(key="parts/DynamicCache", measure=note_plain_update)


def note_parts(bench: Bench[Scale], recipe: str) -> None:
    """Note the median seconds of each part."""
    steps = max(LEAST_STEPS, bench.scale.steps)
    for part, seconds in seconds_of_parts(recipe, held=HELD, steps=steps).items():
        bench.note(
            "parts", part, seconds, "s", variant=recipe, shape={"K": HELD}, repeats=steps,
            median_seconds=seconds, failure=bench.red(f"decoding with {recipe}"),
        )  # fmt: skip


def note_plain_update(bench: Bench[Scale]) -> None:
    """Note the median seconds that transformers' DynamicCache takes."""
    steps = max(LEAST_STEPS, bench.scale.steps)
    seconds = seconds_of_a_plain_update(held=HELD, steps=steps)
    bench.note(
        "parts", "update", seconds, "s", variant="DynamicCache", shape={"K": HELD},
        repeats=steps, median_seconds=seconds,
    )  # fmt: skip


@torch.inference_mode()
def seconds_of_parts(recipe: str, *, held: int, steps: int) -> dict[str, float]:
    """Return the median seconds of each part; in so small a model Python takes most of them."""
    model = tiny_model("llama", num_hidden_layers=4, max_position_embeddings=4 * held + steps)
    cache = kvpolicy.recipe(recipe, budget=held).cache(model)
    model(input_ids=tokens(0, 2 * held), **handed(cache, to=model))
    layer, module = cache.policy_layers[0], model.model.layers[0].self_attn
    rounds = [_round(layer, module) for _ in range(steps)]
    return {part: median(each[part] for each in rounds) for part in rounds[0]}


def _round(layer: Any, module: Any) -> dict[str, float]:
    config = module.config
    query = torch.randn(1, config.num_attention_heads, 1, config.head_dim)
    keys, values = torch.randn(2, 1, config.num_key_value_heads, 1, config.head_dim)
    started = perf_counter()
    layer.update(keys, values)
    updated = perf_counter()
    listener, call = layer.forward, Call(module, {})
    logits = call.logits(query)
    listener.mask_for(module, None, query)
    masked = perf_counter()
    listener.attend(call, query, None, logits)
    attended = perf_counter()
    listener.observe(module, query, logits)
    observed = perf_counter()
    parts = {"update": updated - started, "mask": masked - updated}
    if layer.is_uneven:
        parts["attend"] = attended - masked
    return parts | {"observe": observed - attended}


@torch.inference_mode()
def seconds_of_a_plain_update(*, held: int, steps: int) -> float:
    """Return the median seconds in which transformers' DynamicCache stores a token."""
    config = tiny_model("llama").config
    layer: Any = DynamicCache(config=config).layers[0]
    shape = (2, 1, config.num_key_value_heads)
    layer.update(*torch.randn(*shape, held, config.head_dim))
    seconds = []
    for _ in range(steps):
        keys, values = torch.randn(*shape, 1, config.head_dim)
        started = perf_counter()
        layer.update(keys, values)
        seconds.append(perf_counter() - started)
    return median(seconds)
