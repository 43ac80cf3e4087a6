"""`kvpolicy eval`: a new user's own data in one command, and everything said in a sentence."""

from __future__ import annotations

import json

import pytest

import kvpolicy
from kvpolicy.evaluation import needle


@pytest.fixture
def data(tmp_path):
    prompts = needle.generate_prompts(tokens=96, facts=4, count=2, seed=0)
    file = tmp_path / "mine.jsonl"
    file.write_text(
        "\n".join(json.dumps({"prompt": each.text, "answer": each.answer}) for each in prompts)
    )
    return file


@pytest.fixture
def evaluate(run, data, tmp_path):
    def evaluate(*more, model=needle.MODEL, recipes="restkv,snapkv"):
        return run(
            *("eval", "--model", str(model), "--recipes", recipes, "--max-new-tokens", "4"),
            *("--output", str(tmp_path / "rows.jsonl"), *more),
        )

    return evaluate


def own(data, *more, budgets="48,50%"):
    return ("--data", str(data), "--budgets", budgets, *more)


def test_own_data_are_compared_in_one_command(evaluate, data, tmp_path):
    result = evaluate(*own(data, "--metric", "exact_match", "--page", str(tmp_path / "page.html")))
    assert result.exit_code == 0, result.output
    assert "mine: exact_match" in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["full", "-", "1.000"] in [line[:3] for line in lines]
    assert ["snapkv", "50", "%"] in [line[:3] for line in lines]
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 14
    assert "restkv" in (tmp_path / "page.html").read_text()


def test_the_same_command_runs_nothing_again(evaluate, data, tmp_path):
    first = evaluate(*own(data, "--json"))
    written = (tmp_path / "rows.jsonl").read_bytes()
    assert evaluate(*own(data, "--json")).stdout == first.stdout
    assert (tmp_path / "rows.jsonl").read_bytes() == written


def test_rows_may_go_to_an_address_and_a_report_reads_them(evaluate, run, data, tmp_path):
    address = f"file://{tmp_path}/runs"
    options = ("--no-references", "--limit", "1", "--output", address)
    result = evaluate(*own(data, *options, budgets="48"), recipes="snapkv")
    assert (result.exit_code, f"Rows: {address}" in result.stdout) == (0, True), result.output
    report = run("report", address, "--markdown", str(tmp_path / "report.md"))
    assert "2 rows of 1 task" in report.stdout


def test_a_policy_may_come_from_a_file(evaluate, data, tmp_path):
    policy = kvpolicy.recipe("snapkv", budget=512, sinks=2)
    (tmp_path / "mine.json").write_text(json.dumps(policy.to_dict()))
    options = ("--no-references", "--oracle", "--limit", "1", "--json")
    found = evaluate(*own(data, *options, budgets="48"), recipes=f"{tmp_path}/mine.json")
    cells = json.loads(found.stdout)["cells"]
    named = [(cell["entrant"], cell["budget"]) for cell in cells]
    assert named == [("full", None), ("mine", 48), ("oracle", 48)]


def test_a_refused_budget_is_shown_and_the_others_run(evaluate, data):
    result = evaluate(*own(data, budgets="8,48"))
    assert result.exit_code == 0
    assert "restkv at 8 failed on 2 of 2 samples of mine: budget 8 is smaller" in result.stdout


def test_a_markdown_page_is_written_too(evaluate, data, tmp_path):
    evaluate(*own(data, "--page", str(tmp_path / "page.md")))
    assert "| restkv | 48 |" in (tmp_path / "page.md").read_text()


def test_a_task_is_asked_for_by_name_with_options(evaluate):
    options = ("--option", "length=96", "--option", "facts=4", "--limit", "2")
    result = evaluate("--task", "needle", *options, "--budgets", "48", "--json")
    cells = json.loads(result.stdout)["cells"]
    assert {cell["task"] for cell in cells} == {"needle(length=96, facts=4)"}
    assert [cell["samples"] for cell in cells] == [2, 2, 2, 2]
    assert cells[0]["estimate"]["value"] == 1


def test_a_metric_may_be_a_function_in_this_folder(evaluate, data, tmp_path, monkeypatch):
    (tmp_path / "metric_of_mine.py").write_text("def words(text, sample): return len(text.split())")
    monkeypatch.chdir(tmp_path)
    result = evaluate(*own(data, "--metric", "metric_of_mine:words", "--json"))
    assert json.loads(result.stdout)["cells"][0]["estimate"]["value"] == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--data", "nowhere.jsonl", "--budgets", "48"), "cannot read 'nowhere.jsonl'"),
        (("--budgets", "48"), "there is nothing to evaluate on"),
        (("--task", "nedle", "--budgets", "48"), "no task named 'nedle'"),
        (("--task", "needle", "--option", "length"), "--option is name=value, but is 'length'"),
        (("--task", "needle", "--option", "lenght=9"), "Did you mean 'length'? Options of these"),
        (("--task", "needle", "--option", "length=many"), "'length' must be"),
    ],
)
def test_what_cannot_be_is_said_before_the_model_is_loaded(evaluate, arguments, sentence):
    result = evaluate(*arguments, model="/not/there")
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--budgets", "lots"), "budget must be positions (1024) or a share"),
        (("--budgets", ""), "needs a budget, but there is none"),
        (("--budgets", "48", "--metric", "f2"), "no metric named 'f2'"),
        (("--budgets", "48", "--page", "page.pdf"), "a page is written as .html or .md"),
        (("--budgets", "48", "--baseline", "h2o"), "does not take part. Choose one of: full"),
        (("--budgets", "48", "--output", "/no/rows.jsonl"), "cannot open '/no/rows.jsonl'"),
        (("--budgets", "48", "--page", "/no/page.html"), "cannot write '/no/page.html'"),
        (("--budgets", "48", "--question", "beside"), "'beside' is not one of"),
    ],
)
def test_what_is_wrong_with_an_option_is_said(evaluate, data, arguments, sentence):
    result = evaluate("--data", str(data), *arguments)
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr


def test_a_row_that_is_wrong_is_named(evaluate, data):
    with data.open("a") as opened:
        opened.write('\n{"prompt": "a", "anwser": "b"}\n')
    result = evaluate(*own(data))
    assert result.exit_code == 2
    assert "line 3 has the unknown field 'anwser'. Did you mean 'answer'?" in result.stderr
