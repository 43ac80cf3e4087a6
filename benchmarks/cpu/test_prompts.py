"""The peak memory of whole prompts, full and evicted."""

from benchmarks.cpu import checks
from benchmarks.cpu.prompts import peak_mib
from benchmarks.cpu.targets import PROMPT

BENCHMARK = "cpu.prompts"
RECIPE = "restkv"


def test_peak_of_a_long_prompt(sheet, sizes):
    sheet.require(BENCHMARK, PROMPT, checks.decoding_is_exact, RECIPE)
    about = {"shape": {"L": sizes.prompt, "K": sizes.held} | sizes.narrow.shape, "dtype": "float32"}
    peaks = {
        recipe: sizes.alone(peak_mib, recipe, sizes.held, sizes.prompt, sizes.narrow)
        for recipe in (None, RECIPE)
    }
    full, evicted = peaks.values()
    cache = sizes.narrow.cache_mib(sizes.prompt)
    sheet.note(BENCHMARK, "keys and values of a prompt", cache, "MiB", variant="full", **about)
    sheet.note(BENCHMARK, PROMPT, full, "MiB", variant="full", **about)
    sheet.note(BENCHMARK, PROMPT, evicted, "MiB", variant=RECIPE, **about)
    if full:
        pair = {"variant": RECIPE, "against": "full"} | about
        sheet.note(BENCHMARK, PROMPT, evicted / full, "ratio", **pair)
