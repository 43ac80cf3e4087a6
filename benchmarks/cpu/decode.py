"""Decoding: attention to what is held, and whole steps of a small Llama beside other caches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any

import attrs
import torch
from transformers import Cache, DynamicCache, LlamaForCausalLM, StaticCache

import kvpolicy
from benchmarks.bench import Bench, Cell
from benchmarks.cpu.cases import Decoder
from benchmarks.cpu.layer import fastest
from benchmarks.cpu.scale import Scale
from benchmarks.cpu.targets import ATTENTION, STEP
from benchmarks.layers import LayerShape
from benchmarks.timing import Timing, interleaved, ratio
from benchmarks.uneven import UnevenAllocator
from kvpolicy.huggingface.attention.grouped import grouped_attention
from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.huggingface.cache_argument import handed

Call = Callable[[], object]
CALLS = 16
EVERY_TOKEN = ("h2o", "tova", "streamingllm", "lacache")
"""Recipes that evict at every decoded token."""


def cells() -> Iterator[Cell[Scale]]:
    """Give attention alone, then whole steps."""
    for dtype in (torch.float32, torch.bfloat16):
        key = f"decode/attention/{dtype}".replace("torch.", "")
        yield Cell(key=key, measure=partial(time_attention, dtype=dtype))
    for groups in (True, False):
        key = f"decode/step/{'groups' if groups else 'no_groups'}"
        yield Cell(key=key, measure=partial(time_step, groups=groups))
    yield Cell(key="decode/step/uneven", measure=time_uneven_heads)
    yield Cell(key="decode/step/every_token", measure=time_eviction_at_every_token)


def attention(held: int, dtype: torch.dtype, *, layers: int, calls: int) -> Call:
    """Return a call that attends `calls` times, in `layers` layers in turn."""
    layer = LayerShape()
    query = torch.randn(1, layer.heads, 1, layer.dim, dtype=dtype)
    shape = (2, 1, layer.kv_heads, held, layer.dim)
    caches = [torch.randn(shape, dtype=dtype).unbind(0) for _ in range(layers)]

    def attend() -> None:
        for keys, values in islice(cycle(caches), calls):
            grouped_attention(query, keys, values, query.shape[-1] ** -0.5)

    return attend


def time_attention(bench: Bench[Scale], dtype: torch.dtype) -> None:
    """Time the attention of one token to few positions and to many."""
    scale, layer, red = bench.scale, LayerShape(), bench.red("grouped attention")
    few, many = f"{scale.held:,} held", f"{scale.dense:,} held"
    one, turns = f"{few}, one layer", f"{few}, {CALLS} layers in turn"
    calls = {
        one: attention(scale.held, dtype, layers=1, calls=CALLS),
        turns: attention(scale.held, dtype, layers=CALLS, calls=CALLS),
        many: attention(scale.dense, dtype, layers=1, calls=1),
    }
    found = interleaved(calls, bench.device, repeats=4 * scale.repeats, warmup=1, limit=math.inf)
    times = {
        name: timing if isinstance(timing, str) else timing.each_of(1 if name == many else CALLS)
        for name, timing in found.items()
    }
    shape = {"H": layer.heads, "N": layer.kv_heads, "D": layer.dim}
    note = partial(bench.note, "decode", dtype=dtype, shape=shape, failure=red)
    for name in (one, turns):
        note(
            ATTENTION, ratio(times[many], times[name], fastest), "ratio", variant=name, against=many
        )
    for name, timing in times.items():
        note("time of decode attention", timing, "s", variant=name)


class Stepper:
    """Decodes one token after another into caches that hold equally many positions."""

    def __init__(self, model: LlamaForCausalLM, *, held: int, steps: int) -> None:
        """Prepare for caches that hold `held` positions, and for at most so many steps."""
        self.model = model
        self.held = held
        self.steps = steps
        self.ids = torch.randint(5, 2048, (1, 2 * held), generator=torch.Generator().manual_seed(0))

    def dynamic(self) -> Call:
        """Return a step into transformers' DynamicCache."""
        return self._filled(DynamicCache(config=self.model.config))

    def static(self) -> Call:
        """Return a step into transformers' StaticCache."""
        length = self.held + self.steps + 2
        return self._filled(StaticCache(config=self.model.config, max_cache_len=length))

    def evicted(self, recipe: str, **changes: Any) -> Call:
        """Return a step into a PolicyCache that has evicted half of a longer prompt."""
        return self.into(self.policy_cache(recipe, **changes))

    def policy_cache(self, recipe: str, **changes: Any) -> PolicyCache:
        """Return such a cache."""
        cache = kvpolicy.recipe(recipe, budget=self.held, **changes).cache(self.model)
        with cache:
            self._read(self.ids, cache)
        return cache

    def into(self, cache: PolicyCache) -> Call:
        """Return a step into a cache that observes the model's attention only meanwhile."""

        def step() -> None:
            with cache:
                self._read(self.ids[:, :1], cache)

        return step

    def _filled(self, cache: Cache) -> Call:
        self._read(self.ids[:, : self.held], cache)
        return lambda: self._read(self.ids[:, :1], cache)

    @torch.inference_mode()
    def _read(self, ids: torch.Tensor, cache: Cache) -> None:
        self.model(input_ids=ids, **handed(cache, to=self.model), logits_to_keep=1)


def stepper_of(scale: Scale, decoder: Decoder) -> Stepper:
    """Return a stepper for a new model."""
    return Stepper(decoder.build(), held=scale.held, steps=scale.steps)


def time_step(bench: Bench[Scale], groups: bool) -> None:
    """Time steps beside transformers' caches; without groups each query head has its own keys."""
    decoder, name = bench.scale.decoder, "snapkv"
    if not groups:
        decoder, name = attrs.evolve(decoder, kv_heads=decoder.heads), "snapkv, no groups"
    stepper = stepper_of(bench.scale, decoder)
    theirs = {"DynamicCache": stepper.dynamic(), "StaticCache": stepper.static()}
    calls = {name: stepper.evicted("snapkv"), **theirs}
    note_steps(bench, decoder, calls, [(name, each) for each in theirs], ["snapkv"])


def time_uneven_heads(bench: Bench[Scale]) -> None:
    """Time steps with uneven heads beside even ones."""
    stepper = stepper_of(bench.scale, bench.scale.decoder)
    cache = stepper.policy_cache("snapkv", allocator=UnevenAllocator())
    calls = {"uneven heads": stepper.into(cache), "even heads": stepper.evicted("snapkv")}
    held = torch.stack([(positions >= 0).sum(-1) for positions in cache.positions])
    spread = {"shortest head": int(held.min()), "longest head": int(held.max())}
    pairs = [("uneven heads", "even heads")]
    note_steps(bench, bench.scale.decoder, calls, pairs, ["adakv", "snapkv"], settings=spread)


def time_eviction_at_every_token(bench: Bench[Scale]) -> None:
    """Time steps of recipes that evict at every token beside one that never does."""
    stepper, never = stepper_of(bench.scale, bench.scale.decoder), "snapkv, which never does"
    calls = {never: stepper.evicted("snapkv")}
    calls |= {recipe: stepper.evicted(recipe) for recipe in EVERY_TOKEN}
    pairs = [(recipe, never) for recipe in EVERY_TOKEN]
    note_steps(bench, bench.scale.decoder, calls, pairs, EVERY_TOKEN, share=4)


def note_steps(
    bench: Bench[Scale],
    decoder: Decoder,
    calls: Mapping[str, Call],
    pairs: Sequence[tuple[str, str]],
    recipes: Sequence[str],
    *,
    share: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Time steps in turns, with the `share`-th part of the usual repeats; note times and ratios."""
    scale = bench.scale
    repeats = max(1, scale.steps // share)
    times: Mapping[str, Timing | str] = interleaved(
        calls, bench.device, repeats=repeats, warmup=1, limit=math.inf
    )
    note = partial(
        bench.note, "decode", STEP, settings=settings,
        shape={**decoder.shape, "K": scale.held, "layers": decoder.layers},
        failure=bench.red(*(f"decoding with {recipe}" for recipe in recipes)),
    )  # fmt: skip
    for mine, base in pairs:
        note(ratio(times[mine], times[base]), "ratio", variant=mine, against=base)
    for name, timing in times.items():
        note(timing, "s", variant=name)
