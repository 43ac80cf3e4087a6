"""Files of results are read as they are, and what a reader must know is noted."""

from __future__ import annotations

import json

import attrs
import pytest

from kvpolicy.errors import InvalidValueError, ResultsError
from kvpolicy.evaluation.reports.loading import load


@pytest.fixture
def write(tmp_path):
    def write(rows, name="rows.jsonl", end="\n"):
        file = tmp_path / name
        file.write_text("\n".join(json.dumps(attrs.asdict(row)) for row in rows) + end)
        return file

    return write


def named(row, model):
    return attrs.evolve(row, run={"model": {"name": model, "digest": model}})


def test_rows_come_back_as_they_were_written(rows, write):
    loaded = load([write(rows)])
    assert loaded.rows == tuple(rows)
    assert loaded.notes == ()


def test_several_files_are_read_together(rows, write):
    halves = write(rows[:20], "a.jsonl"), write(rows[20:], "b.jsonl")
    assert load(halves).rows == tuple(rows)


def test_a_last_line_that_was_cut_is_left_out_and_noted(rows, write):
    file = write(rows, end='\n{"key": "cut')
    before = file.read_bytes()
    loaded = load([file])
    assert len(loaded.rows) == len(rows)
    assert loaded.notes == (f"The last line of {file} was cut off, and is left out.",)
    assert file.read_bytes() == before, "a report changes no file"


def test_a_last_line_that_lacks_only_its_end_is_a_row(rows, write):
    loaded = load([write(rows, end="")])
    assert loaded.rows == tuple(rows)
    assert loaded.notes == ()


def test_a_line_in_the_middle_that_is_no_row_is_an_error(rows, write):
    file = write(rows)
    lines = file.read_text().splitlines(keepends=True)
    lines[2] = '{"key": "cut\n'
    file.write_text("".join(lines))
    with pytest.raises(ResultsError, match=r"line 3 of '.*' is no JSON"):
        load([file])


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_is_an_error(tmp_path, text):
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    with pytest.raises(ResultsError, match=r"has no rows\. Give a file that `kvpolicy eval"):
        load([file])


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ResultsError, match=r"cannot read '.*nowhere': No such file"):
        load([tmp_path / "nowhere"])


def test_rows_of_several_models_need_a_choice(rows, write):
    file = write([named(rows[0], "a/b"), named(rows[1], "c/d")])
    with pytest.raises(InvalidValueError, match=r"rows of 2 models: a/b, c/d\. Choose one with"):
        load([file])
    assert [row.sample for row in load([file], model="c/d").rows] == [rows[1].sample]
    with pytest.raises(InvalidValueError, match=r"model 'a/c'\. Did you mean 'a/b'\?"):
        load([file], model="a/c")


def test_a_run_that_is_there_twice_counts_once_and_the_later_one(rows, write):
    again = attrs.evolve(rows[0], key="other", score=0.25)
    loaded = load([write([*rows, again])])
    assert len(loaded.rows) == len(rows)
    assert loaded.rows[0].score == 0.25
    assert loaded.notes == ("1 of 41 rows repeat a run. The later row counts.",)


def test_tasks_are_told_apart_by_question_and_metric_where_these_differ(rows, write):
    outside = attrs.evolve(rows[0], question="outside")
    assert {row.task for row in load([write([rows[0], outside])]).rows} == {
        "needles, question inside",
        "needles, question outside",
    }
    other = attrs.evolve(rows[0], metric="contains")
    assert {row.task for row in load([write([rows[0], other])]).rows} == {
        "needles, f1",
        "needles, contains",
    }


def test_rows_of_several_versions_are_noted(rows, write):
    old = attrs.evolve(rows[1], run={"model": {"name": "org/model", "digest": "x"}, "code": "y"})
    notes = load([write([rows[0], old])]).notes
    assert notes == (
        "The rows are of several versions of the model, or of several data types.",
        "Rows of one recipe were made with several versions of the code.",
    )
