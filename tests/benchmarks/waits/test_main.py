import attrs

from benchmarks import rows
from benchmarks.waits.__main__ import replace


def row(name, value, benchmark="waits.prompt"):
    return rows.Row(
        benchmark=benchmark, name=name, value=value, unit="a layer", device="none: counted"
    )


def test_rows_replace_those_of_the_same_recipes_and_evictions_come_last(tmp_path):
    path = tmp_path / "rows.jsonl"
    others = [row("cam", 1), row("tova", 2), row("cam", 3, "waits.eviction")]
    replace(path, [*others, row("h2o", 4), row("h2o", 5, "waits.eviction")])
    replace(path, [row("h2o", 6), row("h2o", 7, "waits.eviction")])

    found = [(each.name, each.value) for each in rows.read(path)]

    assert found == [("cam", 1), ("h2o", 6), ("tova", 2), ("cam", 3), ("h2o", 7)]
    assert attrs.asdict(rows.read(path)[0]) == attrs.asdict(row("cam", 1))
