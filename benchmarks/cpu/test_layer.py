"""Evicting one layer: ReST-KV beside the authors' algorithm, SnapKV beside kvpress' steps."""

import pytest

from benchmarks.cpu import checks
from benchmarks.cpu.layer import calls, extra_memory
from benchmarks.cpu.targets import MEMORY, SPEED, TIME
from benchmarks.cpu.timing import side_by_side

BENCHMARK = "cpu.layer"
PROCESSES = 3
CHECKS = {
    "restkv": checks.restkv_keeps_what_the_authors_keep,
    "snapkv": checks.snapkv_keeps_what_kvpress_keeps,
}


def compare(sheet, sizes, benchmark, case, names, rounds):
    ours, *theirs = names
    sheet.require(BENCHMARK, TIME, CHECKS[ours])
    times = side_by_side(benchmark, calls(case, *names), rounds)
    # How an allocator splits what it is asked for varies; theirs is far above that.
    most = [sizes.alone(extra_memory, ours, case) for _ in range(1 if sizes.toy else PROCESSES)]
    memory = {ours: max(most)}
    memory |= {name: sizes.alone(extra_memory, name, case) for name in theirs}
    about = {"shape": case.shape, "dtype": case.dtype}
    for name in names:
        sheet.note(BENCHMARK, TIME, times[name], "s", variant=name, **about)
        sheet.note(BENCHMARK, MEMORY, memory[name], "MiB", variant=name, **about)
    for name in theirs:
        pair = {"variant": ours, "against": name} | about
        sheet.note(BENCHMARK, SPEED, times[name].min / times[ours].min, "ratio", **pair)
        if memory[name]:
            sheet.note(BENCHMARK, MEMORY, memory[ours] / memory[name], "ratio", **pair)


@pytest.mark.parametrize("which", [0, 1], ids=["short", "long"])
def test_restkv_beside_the_authors_algorithm(sheet, sizes, benchmark, which):
    case, rounds = sizes.against_authors[which]
    compare(sheet, sizes, benchmark, case, ("restkv", "authors"), rounds)


def test_snapkv_beside_the_steps_of_kvpress(sheet, sizes, benchmark):
    compare(sheet, sizes, benchmark, sizes.against_kvpress, ("snapkv", "kvpress"), sizes.rounds)


def test_restkv_on_a_long_prompt(sheet, sizes, benchmark):
    compare(sheet, sizes, benchmark, sizes.long, ("restkv",), sizes.rounds)
