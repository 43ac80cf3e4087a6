"""Files in InfiniteBench's format become its prompts, with their labels."""

from __future__ import annotations

import json

import pytest

from kvpolicy.errors import DataError
from kvpolicy.evaluation.tasks.groups import GROUPS
from kvpolicy.evaluation.tasks.infinitebench.task import TASKS, InfiniteBenchTask

OPTIONS = ["f_one", "f_two", "f_three", "f_four"]
LINES = {
    "passkey": {"input": "What is the pass key?", "answer": ["71432"]},
    "kv_retrieval": {"input": '\nKey: "{a}"\nThe value', "answer": "abc"},
    "longbook_choice_eng": {"input": "Who?", "answer": ["f_two"], "options": OPTIONS},
    "code_debug": {"input": "", "answer": ["f_three", "C"], "options": OPTIONS},
    "code_run": {"input": "Return of func_1(-9).", "answer": [12]},
    "math_find": {"input": "The second largest number of the list is", "answer": [7.5]},
    "math_calc": {"input": "", "answer": [[1, 2, 3]]},
}


@pytest.fixture
def read(tmp_path):
    def read(task, preset="official", **change):
        line = {"id": 4, "context": "Some {text}.", "input": "What?", "answer": ["yes"]}
        line |= LINES.get(task, {}) | change
        (tmp_path / f"{task}.jsonl").write_text(json.dumps(line) + "\n")
        task = InfiniteBenchTask(task=task, folder=str(tmp_path), preset=preset)
        [sample] = task.samples(None)
        return sample

    return read


@pytest.mark.parametrize(
    ("task", "end"),
    [
        ("passkey", "\n\nWhat is the pass key?\n\nThe pass key is"),
        ("kv_retrieval", '\n\n\nKey: "{a}"\nThe value'),
        ("longbook_sum_eng", "\n\nSummary:"),
        ("longbook_qa_eng", "\n\nQuestion: What?\nAnswer:"),
        (
            "longbook_choice_eng",
            "Question: Who?\nA. f_one\nB. f_two\nC. f_three\nD. f_four\n\n"
            "The letter of the correct answer is",
        ),
        ("code_debug", "A. f_one\nB. f_two\nC. f_three\nD. f_four\n\nThe correct option is:"),
        (
            "code_run",
            "Please compute the exact value of func_1(-9). The value of func_1(-9) is",
        ),
        ("math_calc", "Expression: Some {text}.\nValues:"),
        ("longdialogue_qa_eng", "The name that has been replaced with $$MASK$$ is likely"),
    ],
)
def test_the_end_of_a_prompt_is_kept_to_the_letter(read, task, end):
    sample = read(task)
    assert sample.context.endswith("Some {text}.")
    assert (sample.context + sample.question).endswith(end)


def test_what_is_asked_may_stand_before_the_context_too(read):
    assert read("code_run").context.startswith("There is a function called func_1 in the")
    found = read("math_find").context
    assert found.startswith("What is the second largest number in the following list?\n\nSome")


def test_labels_are_texts_and_a_choice_has_its_letter(read):
    answers = {task: read(task).answers for task in LINES}
    assert answers["passkey"] == ("71432",)
    assert answers["kv_retrieval"] == ("abc",)
    assert answers["longbook_choice_eng"] == ("f_two", "B")
    assert answers["code_debug"] == ("f_three", "C")
    assert (answers["code_run"], answers["math_find"]) == (("12",), ("7.5",))
    assert answers["math_calc"] == ("1, 2, 3",)


def test_the_presets_decode_different_numbers_of_tokens(read):
    tokens = {
        task: (read(task).max_new_tokens, read(task, "restkv").max_new_tokens) for task in TASKS
    }
    assert len(tokens) == len(GROUPS["infinitebench"]) == 12
    assert tokens["passkey"] == (6, 15)
    assert tokens["number_string"] == (12, 20)
    assert tokens["kv_retrieval"] == (50, 80)
    assert tokens["longbook_sum_eng"] == (1200, 1200)


@pytest.mark.parametrize(
    ("task", "change", "sentence"),
    [
        ("passkey", {"answer": None}, "field 'answer' is None"),
        ("passkey", {"answer": []}, r"field 'answer' is \[\]"),
        ("passkey", {"context": 3}, "field 'context' is 3"),
        ("code_debug", {"options": ["a"]}, "It must hold 4 texts"),
        ("code_debug", {"answer": ["f_five"]}, "'f_five' is none of the options"),
        ("code_run", {"input": "nothing"}, "field 'input' is 'nothing'"),
    ],
)
def test_a_line_that_is_none_of_infinitebench_is_named(read, task, change, sentence):
    with pytest.raises(DataError, match=f"{task}.jsonl, line 1.*{sentence}"):
        read(task, **change)


def test_a_missing_file_is_named_with_its_origin(tmp_path):
    with pytest.raises(
        DataError, match=r"read passkey.jsonl in .*\(277 MB\).*InfiniteBench on the"
    ):
        list(InfiniteBenchTask(task="passkey", folder=str(tmp_path)).samples(None))


@pytest.mark.parametrize("task", TASKS)
def test_without_a_folder_the_hub_has_the_file(monkeypatch, task):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=rf"It is {task}\.jsonl \(\d+ MB\).*folder=\.\.\."):
        list(InfiniteBenchTask(task=task).samples(None))
