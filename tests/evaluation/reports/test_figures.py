"""Figures as files."""

from __future__ import annotations

from kvpolicy.evaluation.reports.figures import save_figures
from kvpolicy.evaluation.reports.summary import summary


def test_each_figure_is_a_png_and_a_pdf(rows, tmp_path):
    saved = save_figures(tmp_path, summary(rows), rows)
    assert list(saved) == ["needles"]
    files = saved["needles"]
    assert sorted(file.name for file in files) == sorted(
        f"needles-{name}{suffix}"
        for name in ("quality", "bytes", "footprint", "time")
        for suffix in (".png", ".pdf")
    )
    for file in files:
        start = {".png": b"\x89PNG", ".pdf": b"%PDF"}[file.suffix]
        assert file.read_bytes().startswith(start)


def test_a_haystack_has_a_map_for_each_budget(make_row, tmp_path):
    rows = [
        make_row(f"length {length}, depth 0", entrant, budget)
        for entrant, budget in (("full", None), ("restkv", 8), ("restkv", 16))
        for length in (1, 2)
    ]
    names = {file.name for file in save_figures(tmp_path, summary(rows), rows)["needles"]}
    assert {"needles-depth.png", "needles-depth-8.png", "needles-depth-16.pdf"} <= names


def test_names_of_tasks_that_look_alike_as_files_stay_apart(make_row, tmp_path):
    rows = [
        make_row("1", entrant, budget, task=task)
        for task in ("a(b=1)", "a b 1")
        for entrant, budget in (("full", None), ("restkv", 8))
    ]
    saved = save_figures(tmp_path, summary(rows), rows)
    assert set(saved) == {"a(b=1)", "a b 1"}
    files = [file for group in saved.values() for file in group]
    assert len(set(files)) == len(files) == 16
