"""Decoding: attention to what is held, whole steps beside transformers' caches, uneven heads."""

import attrs
import pytest

from benchmarks.cpu import checks, parts
from benchmarks.cpu.decode import SpreadAllocator, Stepper, attention, shortest_and_longest
from benchmarks.cpu.targets import ATTENTION, STEP
from benchmarks.cpu.timing import side_by_side
from benchmarks.one_layer import DIM, HEADS, KV_HEADS

BENCHMARK = "cpu.decode"
CALLS = 16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_to_few_positions_beside_many(sheet, sizes, benchmark, dtype):
    sheet.require(BENCHMARK, ATTENTION, checks.folding_is_attention)
    few, many = f"{sizes.held:,} held", f"{sizes.dense:,} held"
    one, turns = f"{few}, one layer", f"{few}, {CALLS} layers in turn"
    contenders = {
        one: attention(sizes.held, dtype, layers=1, calls=CALLS),
        turns: attention(sizes.held, dtype, layers=CALLS, calls=CALLS),
        many: attention(sizes.dense, dtype, layers=1, calls=1),
    }
    found = side_by_side(benchmark, contenders, 4 * sizes.rounds)
    times = {name: found[name].each_of(1 if name == many else CALLS) for name in contenders}
    about = {"dtype": dtype, "shape": {"H": HEADS, "N": KV_HEADS, "D": DIM}}
    for name in (one, turns):
        ratio = times[many].min / times[name].min
        sheet.note(BENCHMARK, ATTENTION, ratio, "ratio", variant=name, against=many, **about)
    for name, seconds in times.items():
        sheet.note(BENCHMARK, "time of decode attention", seconds, "s", variant=name, **about)


@pytest.mark.parametrize("groups", [True, False], ids=["groups", "no groups"])
def test_a_step_beside_transformers_caches(sheet, sizes, benchmark, groups):
    sheet.require(BENCHMARK, STEP, checks.decoding_is_exact, "snapkv")
    model = sizes.model if groups else attrs.evolve(sizes.model, kv_heads=sizes.model.heads)
    name = "snapkv" if groups else "snapkv, no groups"
    stepper = Stepper(model.build(), held=sizes.held, rounds=sizes.steps)
    rivals = {"DynamicCache": stepper.dynamic(), "StaticCache": stepper.static()}
    times = side_by_side(benchmark, {name: stepper.evicted("snapkv"), **rivals}, sizes.steps)
    note_steps(sheet, model, sizes, times, [(name, rival) for rival in rivals])


def test_uneven_heads_beside_even_ones(sheet, sizes, benchmark):
    sheet.require(BENCHMARK, STEP, checks.decoding_is_exact, "adakv")
    stepper = Stepper(sizes.model.build(), held=sizes.held, rounds=sizes.steps)
    cache = stepper.policy_cache("snapkv", allocator=SpreadAllocator())
    calls = {"uneven heads": stepper.into(cache), "even heads": stepper.evicted("snapkv")}
    spread = shortest_and_longest(cache)
    times = side_by_side(benchmark, calls, sizes.steps)
    pairs = [("uneven heads", "even heads")]
    note_steps(sheet, sizes.model, sizes, times, pairs, settings=spread)


def test_evicting_at_every_token_beside_never(sheet, sizes, benchmark):
    for recipe in parts.EVERY_TOKEN:
        sheet.require(BENCHMARK, STEP, checks.decoding_is_exact, recipe)
    stepper = Stepper(sizes.model.build(), held=sizes.held, rounds=sizes.steps)
    never = "snapkv, which never does"
    calls = {never: stepper.evicted("snapkv")}
    calls |= {recipe: stepper.evicted(recipe) for recipe in parts.EVERY_TOKEN}
    times = side_by_side(benchmark, calls, max(1, sizes.steps // 4))
    pairs = [(recipe, never) for recipe in parts.EVERY_TOKEN]
    note_steps(sheet, sizes.model, sizes, times, pairs)


def note_steps(sheet, model, sizes, times, pairs, **about):
    shape = model.shape | {"K": sizes.held, "layers": model.layers}
    about |= {"shape": shape, "dtype": "float32"}
    for ours, theirs in pairs:
        ratio = times[ours].median / times[theirs].median
        sheet.note(BENCHMARK, STEP, ratio, "ratio", variant=ours, against=theirs, **about)
    for name, found in times.items():
        sheet.note(BENCHMARK, STEP, found, "s", variant=name, **about)


@pytest.mark.parametrize("recipe", parts.RECIPES)
def test_what_a_layer_spends_on_its_cache(sheet, sizes, recipe):
    sheet.require(BENCHMARK, STEP, checks.decoding_is_exact, recipe)
    held, steps = 2 * 32, max(20, sizes.steps)
    for part, seconds in parts.seconds_of_parts(recipe, held=held, steps=steps).items():
        sheet.note(
            "cpu.parts", part, seconds, "s", variant=recipe, shape={"K": held}, repeats=steps,
            median_seconds=seconds,
        )  # fmt: skip


def test_what_a_layer_of_a_plain_cache_spends(sheet, sizes):
    held, steps = 2 * 32, max(20, sizes.steps)
    seconds = parts.seconds_of_a_plain_update(held=held, steps=steps)
    sheet.note(
        "cpu.parts", "update", seconds, "s", variant="DynamicCache", shape={"K": held},
        repeats=steps, median_seconds=seconds,
    )  # fmt: skip
