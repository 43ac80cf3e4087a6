"""Files in LongBench's format become its prompts, with its rules for templates and tokens."""

from __future__ import annotations

import json

import pytest

from kvpolicy.errors import DataError, InvalidValueError
from kvpolicy.evaluation.tasks.groups import GROUPS
from kvpolicy.evaluation.tasks.longbench.task import TASKS, LongBenchTask

LINE = {
    "input": "Who keeps {goats}?",
    "context": "Otto {keeps} goats.",
    "answers": ["Otto", "It is Otto."],
    "length": 3,
    "dataset": "any",
    "language": "en",
    "all_classes": ["Food", "Human", "Human being"],
    "_id": "abc",
}


@pytest.fixture
def read(tmp_path):
    def read(task, line=LINE, **options):
        file = tmp_path / (f"{task}_e.jsonl" if options.get("extended") else f"{task}.jsonl")
        file.write_text(json.dumps(line, ensure_ascii=False) + "\n")
        return list(LongBenchTask(task=task, folder=str(tmp_path), **options).samples(None))

    return read


def test_the_prompt_is_the_template_with_its_fields(read):
    [sample] = read("narrativeqa")
    text = sample.context + sample.question
    assert text.startswith("You are given a story, which can be either a novel or a movie script")
    assert (
        "Story: Otto {keeps} goats.\n\nNow, answer the question based on the story asconcise"
        in text
    )
    assert text.endswith("\n\nQuestion: Who keeps {goats}?\n\nAnswer:")
    assert sample.context.endswith("goats.")
    assert sample.answers == ("Otto", "It is Otto.")


@pytest.mark.parametrize(
    ("task", "end"),
    [
        ("hotpotqa", "Question: Who keeps {goats}?\nAnswer:"),
        ("gov_report", "Now, write a one-page summary of the report.\n\nSummary:"),
        ("trec", "goats.\nWho keeps {goats}?"),
        ("samsum", "goats.\n\nWho keeps {goats}?"),
        ("passage_count", "The final answer is: "),
        ("lcc", "goats.Next line of code:\n"),
        ("repobench-p", "goats.Who keeps {goats}?Next line of code:\n"),
    ],
)
def test_the_end_of_a_prompt_is_kept_to_the_letter(read, task, end):
    [sample] = read(task)
    assert (sample.context + sample.question).endswith(end)


def test_there_are_16_tasks_with_their_numbers_of_tokens(read):
    tokens = {task: read(task)[0].max_new_tokens for task in TASKS}
    assert len(tokens) == len(GROUPS["longbench"]) == 16
    assert sum(tokens.values()) == 128 * 3 + 64 * 4 + 32 * 6 + 512 * 3
    assert (tokens["qasper"], tokens["lcc"], tokens["musique"]) == (128, 64, 32)


def test_few_shot_tasks_and_code_go_without_a_chat_template(read):
    without = {task for task in TASKS if read(task)[0].chat is False}
    assert without == {"trec", "triviaqa", "samsum", "lcc", "repobench-p"}
    assert all(read(task, preset="restkv")[0].chat is False for task in TASKS)


def test_the_preset_of_restkv_writes_at_least_a_token(read):
    least = [read("qasper", preset=each)[0].min_new_tokens for each in ("official", "restkv")]
    assert least == [0, 1]
    assert read("samsum")[0].min_new_tokens == 1


def test_longbench_e_has_files_of_its_own(read):
    assert len(read("qasper", extended=True)) == 1


def test_every_task_has_its_metric(read):
    names = {task: LongBenchTask(task=task, folder="data").metric.name for task in TASKS}
    assert names["narrativeqa"] == names["triviaqa"] == "qa_f1"
    assert names["samsum"] == names["gov_report"] == "rouge"
    assert (names["trec"], names["lcc"]) == ("classification", "code_sim")
    [sample] = read("trec", LINE | {"answers": ["Human"]})
    assert LongBenchTask(task="trec", folder="data").metric.judge("\nHuman\nFood", sample) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"answers": "Otto"}, "field 'answers' is 'Otto'. It must be of type list"),
        ({"answers": []}, r"field 'answers' is \[\]. It must hold texts"),
        ({"context": None}, "field 'context' is None"),
        ({"all_classes": None}, "field 'all_classes' is None"),
    ],
)
def test_a_line_that_is_none_of_longbench_is_named(read, change, sentence):
    with pytest.raises(DataError, match=f"trec.jsonl, line 1.*{sentence}"):
        read("trec", LINE | change)


def test_a_missing_file_is_named_with_its_origin(tmp_path):
    with pytest.raises(DataError, match=r"cannot read lcc.jsonl in .*data.zip of THUDM/LongBench"):
        list(LongBenchTask(task="lcc", folder=str(tmp_path)).samples(None))


def test_an_unknown_task_is_refused():
    with pytest.raises(InvalidValueError, match="'task' must be one of"):
        LongBenchTask(task="lc", folder="data")
