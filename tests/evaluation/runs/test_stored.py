"""Rows in a folder at an address."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from kvpolicy.errors import ResultsError
from kvpolicy.evaluation.reports.loading import load
from kvpolicy.evaluation.runs import stored
from kvpolicy.evaluation.runs.results import Results
from kvpolicy.evaluation.runs.row import Row
from kvpolicy.evaluation.runs.stored import StoredResults, results_at

ADDRESS = "memory://bucket/runs"


def row(key, **fields):
    given = {"task": "t", "metric": "f1", "sample": key, "question": "inside", "entrant": "full"}
    return Row(key=key, **given | fields)


def files():
    return sorted(fsspec.filesystem("memory").ls("/bucket/runs", detail=False))


@pytest.fixture(autouse=True)
def _empty():
    system = fsspec.filesystem("memory")
    yield
    if system.exists("/bucket"):
        system.rm("/bucket", recursive=True)


def test_a_place_is_a_file_or_an_address(tmp_path):
    assert isinstance(results_at(tmp_path / "rows.jsonl"), Results)
    assert isinstance(results_at(None), Results)
    # A path drops a slash.
    assert results_at(Path(ADDRESS)).file == ADDRESS


@pytest.mark.parametrize("kind", [str, Path])
def test_an_address_of_this_machine_is_where_it_says(tmp_path, monkeypatch, kind):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    results_at(kind(f"file://{tmp_path}/runs")).add(row("a"))
    assert len(list((tmp_path / "runs").iterdir())) == 1
    assert not list((tmp_path / "here").iterdir())


def test_rows_are_read_as_they_were_written():
    first = row("a", score=0.5, text="é\n\ud800", answers=("x",), budget=0.25, run={"code": "c"})
    StoredResults(ADDRESS).add(first)
    assert list(StoredResults(ADDRESS)) == [first]


def test_each_process_has_a_file_and_sees_the_others_rows():
    mine, theirs = StoredResults(ADDRESS), StoredResults(ADDRESS)
    theirs.add(row("a"))
    mine.add(row("b"))
    theirs.add(row("c"))
    assert list(mine.rows) == ["a", "b"]
    mine.refresh()
    assert list(mine.rows) == ["a", "b", "c"]
    assert len(files()) == 2


def test_a_row_of_the_same_run_that_another_process_wrote_first_stays():
    mine, theirs = StoredResults(ADDRESS), StoredResults(ADDRESS)
    first = theirs.add(row("a", score=1.0, first_seconds=0.5))
    assert mine.add(row("a", score=1.0, first_seconds=0.25)) == first
    assert len(files()) == 1


def test_a_run_that_is_run_again_counts_instead():
    StoredResults(ADDRESS).add(row("a", error="no"))
    StoredResults(ADDRESS).add(row("a", score=1.0))
    [found] = StoredResults(ADDRESS)
    assert found.score == 1.0


def test_after_many_rows_another_file_begins(monkeypatch):
    monkeypatch.setattr(stored, "ROWS_OF_A_FILE", 2)
    results = StoredResults(ADDRESS)
    for key in "abcde":
        results.add(row(key))
    assert len(files()) == 3
    assert list(StoredResults(ADDRESS).rows) == list("abcde")


def test_a_line_that_was_cut_is_left_out():
    StoredResults(ADDRESS).add(row("a"))
    [name] = files()
    system = fsspec.filesystem("memory")
    system.pipe_file(name, system.cat_file(name) + b'{"key": "b"')
    assert list(StoredResults(ADDRESS).rows) == ["a"]


def test_a_line_that_is_no_row_is_said_with_its_file():
    fsspec.filesystem("memory").pipe_file("/bucket/runs/other.jsonl", b"{}\n")
    with pytest.raises(
        ResultsError, match=r"line 1 of 'memory://bucket/runs: .*other.jsonl' lacks"
    ):
        StoredResults(ADDRESS)


def test_a_row_that_cannot_be_written_is_not_counted(monkeypatch):
    results = StoredResults(ADDRESS)

    def full(*args):
        raise OSError("no space")

    monkeypatch.setattr(type(results._system), "pipe_file", full)
    with pytest.raises(ResultsError, match=r"cannot write to 'memory://bucket/runs': OSError: no"):
        results.add(row("a"))
    monkeypatch.undo()
    results.add(row("b"))
    assert list(StoredResults(ADDRESS).rows) == ["b"]


@pytest.mark.parametrize("address", ["nosuch://bucket/runs", "sftp://nowhere/runs"])
def test_an_address_that_cannot_be_opened_names_what_it_needs(address):
    with pytest.raises(ResultsError, match="needs the package of fsspec for its protocol"):
        results_at(address)


def test_a_report_reads_them():
    results = StoredResults(ADDRESS)
    results.add(row("a", score=1.0))
    results.add(row("b", score=0.0))
    assert [each.sample for each in load([Path(ADDRESS)]).rows] == ["a", "b"]


def test_a_run_that_an_older_process_runs_again_counts_instead():
    older = StoredResults(ADDRESS)
    older.add(row("b"))
    StoredResults(ADDRESS).add(row("a", error="no"))
    older.refresh()
    older.add(row("a", score=1.0))
    assert StoredResults(ADDRESS).rows["a"].score == 1.0


def test_a_whole_last_line_without_its_end_and_empty_lines_are_read():
    StoredResults(ADDRESS).add(row("a"))
    [name] = files()
    system = fsspec.filesystem("memory")
    line = system.cat_file(name)
    system.pipe_file("/bucket/runs/copied.jsonl", b"\r\n" + line.replace(b'"a"', b'"b"').strip())
    system.pipe_file("/bucket/runs/cut.jsonl", line.replace(b'"a"', b'"c"')[:-9])
    assert set(StoredResults(ADDRESS).rows) == {"a", "b"}
