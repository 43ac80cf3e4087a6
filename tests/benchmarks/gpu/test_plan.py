"""The plan has every cell once, and the most valuable ones first."""

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import plan
from benchmarks.gpu.scale import REAL


def test_the_plan_names_every_cell_once_and_the_worthiest_fit_the_limit():
    cells = plan.cells(REAL)
    keys = [cell.key for cell in cells]
    assert len(keys) == len(set(keys))

    limit = program.parsed([]).time_limit
    after = {
        cell.key: sum(each.seconds for each in cells[: at + 1]) for at, cell in enumerate(cells)
    }
    for key in ("eviction/time/131072", "decode/step/Llama-3.1-8B/1x131072"):
        assert after[key] < limit / 2
    assert after["prefill/time/Llama-3.1-8B/1x131072"] < limit
