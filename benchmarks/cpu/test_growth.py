"""How the time and memory of evicting a layer grow with the prompt, and where the time goes."""

import attrs
import pytest

import kvpolicy
from benchmarks.cpu.layer import calls, extra_memory
from benchmarks.cpu.targets import MEMORY, TIME
from benchmarks.cpu.test_layer import CHECKS
from benchmarks.cpu.timing import Times, seconds_of
from benchmarks.one_layer import stage_seconds

BENCHMARK = "cpu.growth"


@pytest.mark.parametrize("name", ["restkv", "snapkv"])
def test_cost_by_length(sheet, sizes, name):
    sheet.require(BENCHMARK, TIME, CHECKS[name])
    for length in sizes.lengths:
        case = attrs.evolve(sizes.long, positions=length, budget=sizes.grown_to)
        (call,) = calls(case, name).values()
        call()
        times = Times(tuple(seconds_of(call) for _ in range(sizes.rounds)))
        about = {"variant": name, "shape": case.shape, "dtype": case.dtype}
        sheet.note(BENCHMARK, TIME, times, "s", **about)
        sheet.note(BENCHMARK, MEMORY, sizes.alone(extra_memory, name, case), "MiB", **about)


@pytest.mark.parametrize("name", ["restkv", "snapkv"])
def test_seconds_of_every_stage(sheet, sizes, name):
    sheet.require("cpu.stages", TIME, CHECKS[name])
    policy = kvpolicy.recipe(name, budget=sizes.long.budget)
    for case in (*(case for case, _ in sizes.against_authors), sizes.long):
        layer = case.layer()
        assert layer.output_factors is not None  # once per model
        for stage, seconds in stage_seconds(policy, layer, sizes.rounds).items():
            sheet.note(
                "cpu.stages", stage, seconds, "s", variant=name, dtype=case.dtype,
                shape=case.shape, repeats=sizes.rounds,
            )  # fmt: skip
