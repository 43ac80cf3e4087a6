"""`kvpolicy report` writes what is asked for, and says what is wrong before it writes."""

from __future__ import annotations

import json
import re
from urllib.parse import unquote

import pytest


def row(sample, entrant, budget, score, **fields):
    return {
        "key": f"{sample} {entrant} {budget} {fields}",
        "task": "needles",
        "metric": "f1",
        "sample": sample,
        "question": "inside",
        "entrant": entrant,
        "budget": budget,
        "score": score,
        "nbytes": 1024,
        "run": {"model": {"name": "org/model"}},
        **fields,
    }


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        row(sample, *who)
        for sample in "abc"
        for who in (("full", None, 1.0), ("restkv", 64, 0.5), ("snapkv", 64, 0.25))
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return file


def test_everything_is_written_by_one_command(run, results, tmp_path):
    result = run(
        *("report", str(results), "--page", "a.html", "--figures", "new/figures"),
        *("--markdown", "a.md", "--latex", "a.tex", "--baseline", "snapkv"),
    )
    assert result.exit_code == 0, result.output
    assert "9 rows of 1 task" in result.stdout
    assert "<svg" in (tmp_path / "a.html").read_text()
    assert "Baseline: snapkv" in (tmp_path / "a.md").read_text()
    assert r"\textbf{0.500}" in (tmp_path / "a.tex").read_text()
    assert (tmp_path / "new/figures/needles-quality.png").exists()
    assert "Figures: 4 files" in result.stdout


def test_tables_in_markdown_show_the_pictures_that_are_written_with_them(run, results, tmp_path):
    result = run(
        *("report", str(results), "--figures", "all pictures", "--markdown", "pages/a.md"),
    )
    assert result.exit_code != 0, "there is no folder pages"
    (tmp_path / "pages").mkdir()
    result = run(
        *("report", str(results), "--figures", "all pictures", "--markdown", "pages/a.md"),
    )
    assert result.exit_code == 0, result.output
    text = (tmp_path / "pages/a.md").read_text()
    shown = re.findall(r"^!\[(.+)\]\((.+)\)$", text, re.MULTILINE)
    assert [title for title, _ in shown] == ["needles quality", "needles bytes"]
    for _, address in shown:
        assert (tmp_path / "pages" / unquote(address)).resolve().is_file()


def test_without_options_there_is_a_page(run, results, tmp_path):
    assert run("report", str(results)).exit_code == 0
    assert "org/model" in (tmp_path / "kvpolicy-report.html").read_text()
    assert not (tmp_path / "kvpolicy-report.md").exists()


def test_a_file_that_was_cut_is_reported_on_with_a_note(run, results, tmp_path):
    with results.open("a") as file:
        file.write('{"key": "cu')
    before = results.read_bytes()
    result = run("report", str(results), "--page", "a.html")
    assert result.exit_code == 0
    assert "was cut off, and is left out" in result.stderr
    assert "was cut off, and is left out" in (tmp_path / "a.html").read_text()
    assert results.read_bytes() == before


def test_one_of_several_models_can_be_chosen(run, results):
    other = row("a", "full", None, 1.0, run={"model": {"name": "org/other"}})
    with results.open("a") as file:
        file.write(json.dumps(other) + "\n")
    assert "rows of 2 models: org/model, org/other" in run("report", str(results)).stderr
    result = run("report", str(results), "--model", "org/other")
    assert result.exit_code == 0
    assert "1 rows of 1 task" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--baseline", "snapvk"), "no rows of the baseline 'snapvk'. Did you mean 'snapkv'?"),
        (("--page", "/no/page.html"), "cannot write --page '/no/page.html'"),
        (("--latex", "/no/table.tex"), "cannot write --latex '/no/table.tex'"),
        (("--figures", "rows.jsonl"), "cannot write into --figures 'rows.jsonl'"),
        (("--model", "org/modle"), "Did you mean 'org/model'?"),
        (("nowhere.jsonl",), "cannot read 'nowhere.jsonl'"),
        (("empty.jsonl",), "'empty.jsonl' has no rows"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(run, results, tmp_path, arguments, sentence):
    (tmp_path / "empty.jsonl").touch()
    result = run("report", str(results), *arguments)
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
    assert not (tmp_path / "kvpolicy-report.html").exists()
