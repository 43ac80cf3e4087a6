"""`kvpolicy lm-eval`: lm_eval's own command, which then knows the model `kvpolicy`."""

from __future__ import annotations

import functools
import json
import logging
import re
import shlex
import sys
from pathlib import Path

import pytest

from kvpolicy.evaluation import needle

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install kvpolicy[eval]")

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()


@pytest.fixture
def task(tmp_path, monkeypatch):
    import lm_eval.tasks

    prompts = needle.generate_prompts(tokens=64, facts=5, count=2, seed=1)
    rows = [json.dumps({"text": each.text, "answer": each.answer}) for each in prompts]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    task = {
        "task": "recall",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 3},
        "metric_list": [{"metric": "exact_match"}],
    }
    (tmp_path / "recall.yaml").write_text(json.dumps(task))  # JSON is YAML
    # lm_eval's own 14,000 tasks take ten seconds to list.
    alone = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", alone)
    # The command writes its log to the standard error of this test alone.
    monkeypatch.setattr(logging.getLogger("lm_eval"), "handlers", [])
    return tmp_path


def test_the_documented_command_runs_tasks_with_a_recipe(run, task):
    [command] = re.findall(r"^kvpolicy (lm-eval .*)$", PAGE, re.MULTILINE)
    command = command.replace("MODEL", str(needle.MODEL)).replace("sst2,mmlu", "recall")
    command = command.replace("fewshot 5", "fewshot 1")
    before, more = list(sys.argv), ("--include_path", str(task), "--limit", "1", "--device", "cpu")
    result = run(*shlex.split(command), *more)
    assert result.exit_code == 0, result.output
    assert "|recall|" in result.stdout
    assert "'recipe': 'restkv', 'budget': 1024" in result.stdout
    assert sys.argv == before


def test_the_documented_code_runs_tasks_with_a_recipe(task):
    from lm_eval.tasks import TaskManager

    [code] = re.findall(r"```python\n(from lm_eval .*?)```", PAGE, re.DOTALL)
    code = code.replace("MODEL", str(needle.MODEL)).replace("sst2", "recall")
    code = code.replace("fewshot=5", "fewshot=1, limit=1, task_manager=tasks, bootstrap_iters=0")
    scope = {"tasks": TaskManager(include_path=str(task))}
    exec(compile(code, "evaluation.md", "exec"), scope)
    assert scope["found"]["results"]["recall"]["exact_match,none"] in (0, 1)


def test_what_is_wrong_is_one_sentence(run, task):
    result = run(
        *("lm-eval", "--model", "kvpolicy", "--model_args", "pretrained=x,recipe=no,budget=48"),
        *("--tasks", "recall", "--include_path", str(task)),
    )
    assert result.exit_code == 2
    assert "no recipe named 'no'" in result.stderr


def test_help_is_that_of_lm_eval(run):
    result = run("lm-eval", "run", "--help")
    assert result.exit_code == 0
    assert "--include_path" in result.stdout
