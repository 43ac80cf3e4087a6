"""`generate` as users call it: the first token, the tokens behind it, and the memory it holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor
from transformers import PreTrainedModel

import kvpolicy
from benchmarks.bench import Bench, Cell
from benchmarks.gpu.choice import kernels
from benchmarks.gpu.eviction import red
from benchmarks.gpu.models import prompt, random_model
from benchmarks.gpu.recipes import RECIPES
from benchmarks.gpu.scale import Scale
from benchmarks.memory import reserved_bytes
from benchmarks.timing import MIB, Timing, failure_of, interleaved, quotient, ratio
from kvpolicy.huggingface.cache_argument import handed

FULL, STATIC = "full", "full, StaticCache"
COMPILED = ("snapkv", "streamingllm")
"""Recipes whose decode step is compiled, too: one that never evicts in it, and one that does."""
Generate = Callable[[int], Tensor]
"""Generates so many tokens behind each row of a prompt."""


@attrs.frozen(kw_only=True)
class Prompts:
    """The sizes of what is read."""

    rows: int
    length: int
    padded: bool = False

    def __str__(self) -> str:
        """Return them as a key has them."""
        return f"{self.rows}x{self.length}{'-padded' if self.padded else ''}"

    @property
    def shape(self) -> Mapping[str, int]:
        """The sizes by their letters."""
        return {"B": self.rows, "L": self.length}


def cells(
    name: str, prompts: Sequence[Prompts], *, compiled: bool = False
) -> Iterator[Cell[Scale]]:
    """Give a cell for each kind of prompts; with `compiled`, decode steps are compiled.

    Compilation takes up to a minute for each of these, so they have cells of their own.
    """
    for each in prompts:
        form = "compiled" if compiled else "eager"
        yield Cell(
            key=f"generation/{form}/{name}/{each}",
            measure=partial(measure_generation, name=name, prompts=each, compiled=compiled),
            seconds=200 if compiled else 75,
        )


def generations(
    model: PreTrainedModel, prompts: Prompts, scale: Scale, *, compiled: bool
) -> dict[str, Generate]:
    """Return what generates, by the title of its cache."""
    inputs = inputs_of(model, prompts)

    def generated(count: int, **options: Any) -> Tensor:
        wanted = {"min_new_tokens": count, "max_new_tokens": count, "do_sample": False}
        generate: Any = model.generate
        found: Tensor = generate(**inputs, **wanted, **options)
        return found

    def evicted(name: str, count: int) -> Tensor:
        static: Any = {"static": True, "capacity": scale.new_tokens} if compiled else {}
        policy = kvpolicy.recipe(name, budget=scale.budget)
        with kernels("auto"), policy.cache(model, **static) as cache:
            return generated(count, **handed(cache, to=model))

    if compiled:
        calls = {f"{name}, static": partial(evicted, name) for name in COMPILED}
        return {STATIC: partial(generated, cache_implementation="static"), **calls}
    return {FULL: generated, **{name: partial(evicted, name) for name in RECIPES}}


def inputs_of(model: PreTrainedModel, prompts: Prompts) -> dict[str, Tensor]:
    """Return random tokens; with padding, every other row has an eighth of it on the left."""
    tokens = prompt(model, prompts.length, prompts.rows)
    mask = torch.ones_like(tokens)
    if prompts.padded:
        mask[1::2, : prompts.length // 8] = 0
    return {"input_ids": tokens, "attention_mask": mask}


@attrs.frozen(kw_only=True)
class Found:
    """What was measured of one cache; a string stands where there is none, and says why."""

    first: float | str
    """The seconds of the first call, for one token."""
    one: Timing | str
    many: Timing | str
    reserved: float | str

    def token_seconds(self, count: int) -> float | str:
        """Return the seconds of a token behind the first, of `count`, by the fastest repeats."""
        if isinstance(self.one, str):
            return self.one
        if isinstance(self.many, str):
            return self.many
        return (self.many.minimum - self.one.minimum) / (count - 1)


@torch.no_grad()
def measure_generation(bench: Bench[Scale], name: str, prompts: Prompts, *, compiled: bool) -> None:
    """Measure each cache: its first call, then one token and many in turns, then its memory."""
    scale = bench.scale
    model = random_model(name, scale, scale.layers, bench.device)
    compared = generations(model, prompts, scale, compiled=compiled)
    first = {title: first_call(call, bench.device) for title, call in compared.items()}
    calls = {
        (title, count): partial(call, count)
        for title, call in compared.items()
        for count in (1, scale.new_tokens)
    }
    timings = interleaved(calls, bench.device, repeats=3, warmup=1, limit=20.0, wall=True)
    found = {
        title: Found(
            first=first[title],
            one=timings[title, 1],
            many=timings[title, scale.new_tokens],
            reserved=reserved_bytes(calls[title, scale.new_tokens], bench.device),
        )
        for title in compared
    }
    for title in found:
        base = STATIC if compiled else FULL
        note_generation(bench, (name, prompts), found, title, base)


def first_call(call: Generate, device: torch.device) -> float | str:
    """Return the seconds of a first call, with all that it compiles; or why it failed."""
    started = time.perf_counter()
    failure = failure_of(lambda: call(1).cpu())
    return failure or time.perf_counter() - started


def note_generation(
    bench: Bench[Scale],
    what: tuple[str, Prompts],
    found: Mapping[str, Found],
    title: str,
    base: str,
) -> None:
    """Note what was measured of one cache, also beside the full cache of the same form."""
    name, prompts = what
    mine, full = found[title], found[base]
    count = bench.scale.new_tokens
    recipe = title.partition(",")[0]
    settings = {"model": name, "layers": bench.scale.layers, "padded": prompts.padded}
    note = partial(
        bench.note, "generation", variant=title, settings=settings,
        shape={**prompts.shape, "K": bench.scale.budget},
        failure=red(bench, recipe) if recipe in RECIPES else None,
        note="" if bench.device.type == "cuda" else "a CPU compiles no decode step",
    )  # fmt: skip
    seconds = mine.token_seconds(count)
    note("first call", mine.first, "s")
    note("first token", mine.one, "s")
    note("token", seconds, "s", timing=mine.many, settings=settings | {"tokens": count})
    note("reserved memory", quotient(mine.reserved, MIB), "MiB")
    if title != base:
        note("first token ratio", ratio(mine.one, full.one), "ratio", against=base)
        note("token ratio", quotient(seconds, full.token_seconds(count)), "ratio", against=base)
