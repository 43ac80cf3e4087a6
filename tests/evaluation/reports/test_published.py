"""Published scores stand beside ours only where all that decides them is the same."""

from __future__ import annotations

import json
from importlib.resources import files

import attrs
import pytest

import kvpolicy
from kvpolicy.evaluation.reports.published import published
from kvpolicy.evaluation.runs.row import Row
from kvpolicy.evaluation.tasks.groups import GROUPS
from kvpolicy.evaluation.tasks.longbench.task import TASKS

TABLES = json.loads(
    files("kvpolicy.evaluation.reports").joinpath("published.json").read_text("utf-8")
)["tables"]
LLAMA2 = next(table for table in TABLES if not table["grouped_heads"])
POLICY = json.loads(json.dumps(kvpolicy.recipe("snapkv", budget=128).to_dict()))


@pytest.fixture(scope="module")
def ours():
    """All of LongBench on Llama-2-7B-Chat, by SnapKV at 128; every score is 0.25."""
    return [
        Row(
            key=f"{task} {sample}",
            task=f"{task}(preset=restkv, folder=data)",
            metric="m",
            sample=str(sample),
            question="inside",
            entrant="snapkv",
            budget=128,
            policy=POLICY,
            score=0.25,
            tokens=3950,
            run={"model": {"name": "meta-llama/Llama-2-7b-chat-hf"}},
        )
        for task, count in LLAMA2["tasks"].items()
        for sample in range(count)
    ]


def changed(rows, **fields):
    return [attrs.evolve(row, **fields) for row in rows]


def test_the_same_protocol_is_compared(ours):
    [found] = published(ours)
    assert (found.entrant, found.budget) == ("snapkv", 128)
    assert (found.ours, found.theirs) == (25.0, 27.41)
    assert "rest-kv" in found.source


@pytest.mark.parametrize(
    "fields",
    [
        {"run": {"model": {"name": "other/Llama-2-13b-chat-hf"}}},
        {"budget": 96},
        {"entrant": "mine"},
        {"question": "outside"},
        {"tokens": 3000},
        {"tokens": 9000},
        {"policy": POLICY | {"sinks": 4}},
        {"score": None, "error": "failed"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_differs_is_not_compared(ours, fields):
    assert published(changed(ours, **fields)) == []


@pytest.mark.parametrize(
    "options", ["preset=official, folder=data", "preset=restkv, extended=True"]
)
def test_another_preset_or_set_is_not_compared(ours, options):
    rows = [attrs.evolve(row, task=f"{row.task.partition('(')[0]}({options})") for row in ours]
    assert published(rows) == []


def test_a_sample_too_few_is_not_compared(ours):
    assert published(ours[1:]) == []


def test_a_task_too_few_is_not_compared(ours):
    assert published([row for row in ours if "samsum" not in row.task]) == []


def test_on_grouped_heads_only_the_full_cache_is_compared(ours):
    rows = changed(
        ours, run={"model": {"name": "mistralai/Mistral-7B-Instruct-v0.3"}}, tokens=31500
    )
    assert published(rows) == []
    [found] = published(changed(rows, entrant="full", budget=None, policy=None))
    assert (found.entrant, found.theirs) == ("full", 48.11)


def test_every_table_has_a_source_and_names_tasks_that_there_are():
    tasks = {f"longbench_{task}" for task in TASKS} | set(GROUPS["ruler_restkv"])
    recipes = {part.name for part in kvpolicy.installed("recipe")}
    for table in TABLES:
        assert table["source"].startswith("https://")
        assert set(table["tasks"]) <= tasks
        assert {score["recipe"] for score in table["scores"]} <= recipes | {"full"}
        for score in table["scores"]:
            if score["recipe"] != "full":
                kvpolicy.recipe(score["recipe"], budget=score["budget"], **score.get("options", {}))


def test_no_rows_are_no_comparison():
    assert published([]) == []
