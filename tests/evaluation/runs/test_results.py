"""Rows survive: appended whole, read again, and damage is said and not repaired away."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvpolicy.errors import ResultsCutWarning, ResultsError
from kvpolicy.evaluation.runs.results import Results
from kvpolicy.evaluation.runs.row import Row


def row(key, **fields):
    given = {"task": "t", "metric": "f1", "sample": "1", "question": "inside", "entrant": "full"}
    return Row(key=key, **given | fields)


def test_rows_are_read_as_they_were_written(tmp_path):
    first = row("a", score=0.5, text="é\n\ud800", answers=("x",), budget=0.25, run={"code": "c"})
    Results(tmp_path / "rows.jsonl").add(first)
    [found] = Results(tmp_path / "rows.jsonl")
    assert found == first


def test_the_last_row_of_a_key_counts(tmp_path):
    results = Results(tmp_path / "rows.jsonl")
    results.add(row("a", error="no"))
    results.add(row("a", score=1.0))
    [found] = Results(tmp_path / "rows.jsonl")
    assert found.score == 1


def test_what_another_process_appends_is_seen(tmp_path):
    mine, theirs = Results(tmp_path / "rows.jsonl"), Results(tmp_path / "rows.jsonl")
    theirs.add(row("b"))
    mine.refresh()
    assert "b" in mine.rows


def test_a_row_of_the_same_run_that_another_process_appended_first_stays(tmp_path):
    mine, theirs = Results(tmp_path / "rows.jsonl"), Results(tmp_path / "rows.jsonl")
    first = theirs.add(row("a", score=1.0, first_seconds=0.5))
    assert mine.add(row("a", score=1.0, first_seconds=0.25)) == first
    assert (tmp_path / "rows.jsonl").read_bytes().count(b"\n") == 1


@pytest.mark.parametrize("length", [1, 40, -2])
def test_a_row_that_was_cut_is_said_and_removed_and_the_others_stay(tmp_path, length):
    file = tmp_path / "rows.jsonl"
    Results(file).add(row("a"))
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:length])
    with pytest.warns(ResultsCutWarning, match=r"rows.jsonl' ended in the middle .* run again"):
        results = Results(file)
    assert file.read_bytes() == whole
    assert list(results.rows) == ["a"]
    results.add(row("b"))
    assert list(Results(file).rows) == ["a", "b"]


def test_a_last_row_that_lacks_only_its_line_end_is_kept(tmp_path):
    file = tmp_path / "rows.jsonl"
    first, second = Results(file).add(row("a")), Results(file).add(row("b", score=0.5))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert list(Results(file)) == [first, second]
    assert file.read_bytes() == whole


def test_a_file_that_is_all_one_cut_row_starts_anew(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"key": "a')
    with pytest.warns(ResultsCutWarning, match="The last 10 bytes were removed"):
        assert not Results(tmp_path / "rows.jsonl").rows


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "is no JSON"),
        ("[]", "is no JSON object"),
        ('{"key": "a"}', "lacks task, metric, sample, question, entrant"),
        ('{"prompt": "hello"}', "lacks key, task"),
    ],
)
def test_a_line_that_is_no_row_is_named_and_nothing_is_changed(line, fault, tmp_path):
    file = tmp_path / "rows.jsonl"
    Results(file).add(row("a"))
    damaged = file.read_text() + line + "\n"
    file.write_text(damaged)
    with pytest.raises(ResultsError, match=f"line 2 of .*rows.jsonl' {fault}"):
        Results(file)
    assert file.read_text() == damaged


def test_a_field_that_no_row_has_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    Results(file).add(row("a"))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"colour": 1}) + "\n")
    with pytest.raises(ResultsError, match="has 'colour', which no row has"):
        Results(file)


@pytest.mark.parametrize("name", ["no/such/folder.jsonl", "."])
def test_a_file_that_cannot_be_written_is_said_before_the_work(name, tmp_path):
    with pytest.raises(ResultsError, match="cannot open"):
        Results(tmp_path / name)


def test_processes_that_append_at_once_lose_nothing(tmp_path):
    code = (
        "import sys; from kvpolicy.evaluation.runs.results import Results, Row\n"
        "results = Results(sys.argv[1])\n"
        "for n in range(40): results.add(Row(key=sys.argv[2] + str(n), task='t' * 5000, "
        "metric='', sample='', question='', entrant=''))"
    )
    file = str(tmp_path / "rows.jsonl")
    with ThreadPoolExecutor(3) as pool:
        list(
            pool.map(
                lambda name: subprocess.run([sys.executable, "-c", code, file, name], check=True),
                "abc",
            )
        )
    assert len(Results(file).rows) == 120
