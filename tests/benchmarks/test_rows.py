"""Rows: what a benchmark writes is what the docs read."""

import re

import attrs

from benchmarks import rows

ROW = rows.Row(
    benchmark="gpu.kernels",
    name="gather_kv",
    variant="kernel",
    value=0.5,
    unit="ratio",
    against="copy_",
    device="cpu",
    shape={"L": 4096},
    settings={"budget": 1024},
    versions=rows.versions(),
)


def test_rows_come_back_as_they_were_written(tmp_path):
    file = tmp_path / "new" / "rows.jsonl"
    failed = attrs.evolve(ROW, value=None, failure="out of memory: 3 GiB")

    rows.write(file, [ROW])
    rows.write(file, [failed])

    assert rows.read(file) == [ROW, failed]


def test_a_byte_order_mark_is_no_part_of_the_rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text(ROW.to_json() + "\n", encoding="utf-8-sig")
    assert rows.read(tmp_path / "rows.jsonl") == [ROW]


def test_a_row_says_what_it_ran_with():
    assert set(rows.versions()) == {"python", "kvpolicy", "torch", "triton", "transformers"}
    assert re.search(r", (1 thread|[2-9]\d* threads|1\d+ threads)$", rows.machine())
