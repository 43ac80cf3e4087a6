from benchmarks.rows import Row
from benchmarks.waits.lengths import LENGTHS
from benchmarks.waits.table import LENGTH_HEADER, length_cells


def row(length, launches):
    return Row(
        benchmark="waits.eviction", name="snapkv", value=launches, unit="launches",
        device="none: counted", shape={"L": length}, settings={"waits": 0, "memory": 0.125},
    )  # fmt: skip


def test_the_growth_of_launches_is_met_or_missed():
    short, long = LENGTHS
    (met,) = length_cells([row(short, 20), row(long, 30)])
    assert met == ["snapkv", "20 / 0", "30 / 0", "1.50x, met", "12.5%", "12.5%"]
    assert len(met) == len(LENGTH_HEADER)
    (missed,) = length_cells([row(short, 20), row(long, 31)])
    assert missed[3] == "1.55x, missed"
