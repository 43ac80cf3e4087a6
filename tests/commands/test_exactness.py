"""`kvpolicy exactness` prints what was measured, and writes rows and a page."""

from pathlib import Path

import attrs
import pytest

from kvpolicy.commands import exactness
from kvpolicy.exactness import tables
from kvpolicy.exactness.cells import Line
from kvpolicy.exactness.page import read, rendered, write

EXACT = Line(table="recipes", subject="h2o", cells={"one prompt": 2e-6, "sampling": "E: no."})
WRONG = Line(table="recipes", subject="tova", cells={"one prompt": 2e-3})
REFUSED = Line(table="architectures", subject="mamba", refused="UnsupportedModelError: no.")


@pytest.fixture
def rows(tmp_path):
    def written(*lines):
        write(lines, tmp_path / "rows.jsonl")
        return str(tmp_path / "rows.jsonl")

    return written


def test_every_line_and_the_sums_are_printed(run, rows):
    result = run("exactness", "--from", rows(EXACT, REFUSED))
    assert result.exit_code == 0, result.output
    first, second, last = result.stdout.splitlines()
    assert first.split()[:4] == ["recipes", "h2o", "1", "exact,"]
    assert first.endswith("largest difference 2e-06")
    assert second.endswith("mamba                              UnsupportedModelError: no.")
    assert last == "1 cells are exact, 0 wrong, 1 refused; 1 models are refused"


def test_a_byte_order_mark_is_no_part_of_the_rows(run, rows, tmp_path):
    (tmp_path / "marked.jsonl").write_bytes(b"\xef\xbb\xbf" + Path(rows(EXACT)).read_bytes())
    marked = run("exactness", "--from", str(tmp_path / "marked.jsonl"))
    assert marked.exit_code == 0, marked.output
    assert marked.stdout == run("exactness", "--from", rows(EXACT)).stdout


def test_rows_that_are_not_there_are_named(run):
    result = run("exactness", "--from", "not/there.jsonl")
    assert result.exit_code == 2
    assert result.output.startswith("cannot read --from 'not/there.jsonl': No such file")


def test_a_wrong_cell_ends_with_status_1(run, rows):
    result = run("exactness", "--from", rows(EXACT, WRONG))
    assert result.exit_code == 1
    assert "0 exact, 1 WRONG" in result.stdout


def test_rows_and_page_are_written_where_they_are_wanted(run, rows, tmp_path):
    page, again = tmp_path / "page.md", tmp_path / "again.jsonl"
    source = rows(EXACT)
    run("exactness", "--from", source, "--page", str(page), "--rows", str(again))
    assert page.read_text() == rendered([EXACT])
    assert again.read_text() == (tmp_path / "rows.jsonl").read_text()


def test_one_table_is_measured(run, monkeypatch):
    asked = []

    def measured(names, workers, subjects):
        asked.append((list(names), workers, list(subjects)))
        yield EXACT

    monkeypatch.setattr(tables, "measured", measured)
    result = run("exactness", "--table", "recipes", "--workers", "3")
    assert asked == [(["recipes"], 3, [])]
    assert result.exit_code == 0


def test_lines_of_one_subject_replace_those_of_the_rows(run, rows, tmp_path, monkeypatch):
    path, page = rows(WRONG, EXACT, REFUSED), tmp_path / "page.md"
    better = attrs.evolve(WRONG, cells={"one prompt": 2e-6, "sampling": 3e-6})
    monkeypatch.setattr(tables, "measured", lambda names, workers, subjects: iter([better]))
    result = run("exactness", "--subject", "tova", "--rows", path, "--page", str(page))
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == (
        "2 cells are exact, 0 wrong, 0 refused; 0 models are refused"
    )
    assert read(Path(path)) == [better, EXACT, REFUSED]
    assert page.read_text() == rendered([better, EXACT, REFUSED])


def test_an_unknown_subject_is_refused(run):
    result = run("exactness", "--table", "recipes", "--subject", "h20")
    assert result.exit_code == 2
    assert "no line of recipes has the subject 'h20'. Did you mean 'h2o'?" in result.stderr


def test_subjects_are_those_of_the_lines():
    assert [task.subject for task in tables.chosen(["recipes"], ["h2o"])] == ["h2o"]
    (task,) = tables.chosen(["attentions"], ["llama, eager, float32"])
    assert task.measure.args[:2] == ("attentions", "llama, eager, float32")


def test_an_unknown_table_is_refused_with_the_tables_there_are(run):
    result = run("exactness", "--table", "recipe")
    assert result.exit_code == 2
    assert "no table named 'recipe'. Did you mean 'recipes'?" in result.stderr


def test_the_command_offers_every_table():
    assert tuple(tables.TABLES) == exactness.TABLES


def test_without_the_packages_of_the_extra_the_command_says_what_to_install(run, monkeypatch):
    monkeypatch.setattr(exactness, "find_spec", lambda package: None)
    result = run("exactness")
    assert result.exit_code == 2
    assert "pip install 'kvpolicy[testing]'" in result.stderr
