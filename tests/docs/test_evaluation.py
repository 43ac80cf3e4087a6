"""What the page on evaluation shows works as it is written."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import kvpolicy
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.measures.catalogue import METRICS
from kvpolicy.evaluation.tasks.fields import FIELDS
from kvpolicy.evaluation.tasks.groups import GROUPS
from kvpolicy.evaluation.tasks.own import read_samples

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def column(heading):
    """Return the names in the first column of the table below a heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_the_first_command_works_on_the_data_that_are_shown(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text(blocks("json")[0])
    command = blocks("console")[0].replace("MODEL", str(needle.MODEL))
    result = run(*shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    assert Path("mine.html").exists()
    assert "mine: contains" in result.stdout


def test_the_report_is_made_of_what_the_first_command_wrote(run, tmp_path, monkeypatch):
    test_the_first_command_works_on_the_data_that_are_shown(run, tmp_path, monkeypatch)
    [command] = [block for block in blocks("console") if block.startswith("kvpolicy report")]
    result = run(*shlex.split(command.replace("snapkv", "restkv"))[1:])
    assert result.exit_code == 0, result.output
    assert {"report.html", "report.md", "report.tex"} <= {file.name for file in Path().iterdir()}
    assert list(Path("figures").glob("*.png"))


def test_the_prompt_that_is_inspected_is(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [prompt] = needle.generate_prompts(tokens=128, facts=4, count=1, seed=0)
    Path("prompt.txt").write_text(prompt.text)
    [command] = [block for block in blocks("console") if block.startswith("kvpolicy inspect")]
    command = command.replace("MODEL", str(needle.MODEL)).replace("goats", prompt.answer)
    result = run(*shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    assert Path("inspect.html").exists()


def test_the_data_that_are_shown_are_data():
    assert len(read_samples([json.loads(line) for line in blocks("json")[0].splitlines()])) == 2


def test_the_code_that_is_shown_runs(capsys):
    code = blocks("python")[0]
    exec(compile(code, "evaluation.md", "exec"), {})
    assert "| streamingllm |" in capsys.readouterr().out


def test_every_field_and_metric_is_described():
    assert column("Your own data") == set(FIELDS)
    assert column("Metrics") == {*METRICS, "module:name"}


def test_every_task_is_described():
    described = column("Tasks")
    names = {part.name for part in kvpolicy.installed("task")} | set(GROUPS)
    singles = {name for name in names if not name.startswith(tuple(f"{each}_" for each in GROUPS))}
    assert singles | set(GROUPS) <= described
