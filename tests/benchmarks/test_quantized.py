"""The table of quantised storage, at toy size."""

import pytest

from benchmarks import quantized
from benchmarks.rows import Row
from kvpolicy import recipe
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.reader import Reader


@pytest.fixture(scope="module")
def found():
    """Two prompts, evicted by restkv, in full precision and in few bits."""
    reader = Reader(*needle.load())
    questions = needle.generate_prompts(tokens=96, facts=4, count=2, seed=0)
    storages = [
        None,
        *(
            {"name": "quantized", "bits": bits, "backend": "minmax", "residual": 0}
            for bits in (8, 4)
        ),
    ]
    return list(quantized.measure(reader, questions, recipe("restkv", budget=40), storages))


def test_errors_grow_and_bytes_shrink_with_fewer_bits(found):
    full, eight, four = found
    assert full.error == 0
    assert 0 < eight.error < four.error / 4
    assert full.nbytes > eight.nbytes > four.nbytes
    assert full.right == eight.right == 2


def test_rows_say_by_themselves_what_was_measured(found):
    rows = list(quantized.rows_of(found, {"budget": 40}))
    assert [Row.from_json(row.to_json()) for row in rows] == rows
    assert {row.name for row in rows} == {"attention output error", "right", "cache"}
    assert next(row.value for row in rows if row.name == "right") == 1
    assert rows[-1].settings["storage"]["bits"] == 4


def test_the_table_names_every_storage(found):
    names = [each.name for each in found]
    assert names == ["full precision", "8 bits, last 0 in full", "4 bits, last 0 in full"]
    assert quantized.table(found, "toy").row_count == 3


def test_full_precision_comes_first():
    first, *others = quantized.storages()
    assert first is None
    assert {each["bits"] for each in others} == {8, 4}
