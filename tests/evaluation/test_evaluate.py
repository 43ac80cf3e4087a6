"""`kvpolicy.evaluate`: own data and tasks, from Python."""

from __future__ import annotations

import json

import attrs
import pytest

import kvpolicy
from kvpolicy.errors import DataError, InvalidValueError, ResultsError, UnknownComponentError
from kvpolicy.evaluation import needle
from kvpolicy.task import Metric, Sample


@pytest.fixture(scope="module")
def pair():
    return needle.load()


@pytest.fixture(scope="module")
def data():
    prompts = needle.generate_prompts(tokens=96, facts=6, count=3, seed=2)
    rows = []
    for prompt in prompts:
        context, _, question = prompt.text.rpartition(" question ")
        rows.append(
            {"context": context, "question": f"question {question}", "answer": prompt.answer}
        )
    return rows


@attrs.frozen(kw_only=True)
class Needles:
    """A third party's task."""

    metric: Metric = attrs.field(
        factory=lambda: Metric(name="starts", judge=lambda text, s: float(text == s.answers[0]))
    )

    def samples(self, tokenizer):
        for number, prompt in enumerate(
            needle.generate_prompts(tokens=80, facts=3, count=5, seed=3)
        ):
            yield Sample(name=str(number), context=prompt.text, answers=(prompt.answer,))


def evaluate(pair, **options):
    given = {"recipes": ["restkv", "streamingllm"], "budgets": [40, 0.5]} | options
    return kvpolicy.evaluate(*pair, max_new_tokens=4, **given)


def values(found):
    return {cell.title: cell.estimate.value for cell in found.cells if cell.estimate}


def test_three_lines_compare_recipes_on_own_data(pair, data):
    found = evaluate(pair, data=data, metric="exact_match")
    assert values(found)["full"] == 1
    assert set(values(found)) == {
        "full",
        *(
            f"{name} at {budget}"
            for name in ("restkv", "streamingllm", "random")
            for budget in ("40", "50 %")
        ),
    }
    assert "| full |" in str(found)
    assert found.html().startswith("<!doctype html>")
    assert json.dumps(found.to_dict())


@pytest.mark.parametrize("question", ["inside", "outside"])
def test_a_budget_for_everything_answers_as_the_full_cache(pair, data, question):
    found = evaluate(pair, data=data, budgets=[1.0, 512], question=question, metric="f1")
    texts = {}
    for row in found.rows:
        texts.setdefault(row.sample, set()).add(row.text)
    assert all(len(each) == 1 for each in texts.values())


def test_references_are_switched_off_and_on(pair, data):
    options = {"data": data, "budgets": [40], "recipes": ["snapkv"], "limit": 1}
    found = evaluate(pair, references=False, oracle=True, **options)
    assert [row.entrant for row in found.rows] == ["full", "snapkv", "oracle"]
    assert values(found)["oracle at 40"] == 1


def test_where_the_question_stands_changes_what_is_kept(pair, data):
    inside, outside = (
        evaluate(pair, data=data, budgets=[40], question=question, metric="f1")
        for question in ("inside", "outside")
    )
    positions = [
        {row.positions for row in each.rows if row.entrant == "restkv"}
        for each in (inside, outside)
    ]
    assert positions == [{40}, {43}]


def test_a_function_is_a_metric(pair, data):
    found = evaluate(pair, data=data, metric=lambda text, sample: len(text.split()), budgets=[40])
    assert values(found)["full"] == 3
    assert "test_evaluate" in found.rows[0].metric


def test_rows_with_choices_are_multiple_choice_unless_told_otherwise(pair, data):
    rows = [row | {"choices": [row["answer"], "amber amber amber"]} for row in data]
    found = evaluate(pair, data=rows, budgets=[64])
    assert {row.metric for row in found.rows} == {"multiple_choice"}
    assert values(found)["full"] == 1


def test_prompts_without_answers_are_compared_with_the_full_cache(pair, data):
    prompts = [{"context": row["context"], "question": row["question"]} for row in data]
    found = evaluate(pair, data=prompts, recipes=["random", "snapkv"], budgets=[40, 512])
    assert {row.metric for row in found.rows} == {"agreement"}
    assert values(found)["full"] == values(found)["snapkv at 512"] == 1
    assert values(found)["random at 40"] < 1
    divergence = {}
    for row in found.rows:
        divergence.setdefault((row.entrant, row.budget), []).append(row.divergence)
    assert max(divergence["full", None]) == 0
    assert max(divergence["snapkv", 512]) == pytest.approx(0, abs=1e-5)
    assert min(divergence["random", 40]) > 0.01


def test_conversations_have_a_perplexity_of_the_agents_turns(pair, data):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{row['context']} {row['question']}"},
                {"role": "assistant", "content": row["answer"]},
            ]
        }
        for row in data
    ]
    found = evaluate(pair, data=rows, metric="dialogue_perplexity", budgets=[40], oracle=True)
    assert {row.weight for row in found.rows if not row.failed} == {3}
    assert values(found)["streamingllm at 40"] != values(found)["full"]
    assert not found.cells[0].larger_is_better
    assert {row.error is None for row in found.rows if row.entrant != "oracle"} == {True}
    with pytest.raises(DataError, match=r"row 1 of the data has no 'messages' with a turn of an"):
        evaluate(pair, data=data, metric="dialogue_perplexity")


def test_a_task_object_has_its_own_metric(pair):
    found = evaluate(pair, tasks=[Needles()], budgets=[40], limit=2)
    assert {(row.task, row.metric) for row in found.rows} == {("Needles", "starts")}
    assert values(found)["full"] == 1
    assert len({row.sample for row in found.rows}) == 2


def test_data_and_tasks_go_together(pair, data, tmp_path):
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, data)))
    found = evaluate(pair, tasks=[Needles()], data=tmp_path / "mine.jsonl", budgets=[40], limit=1)
    assert {row.task for row in found.rows} == {"mine", "Needles"}


def test_another_baseline_may_be_chosen_afterwards(pair, data):
    found = evaluate(pair, data=data, budgets=[40]).against("streamingllm")
    cells = {cell.title: cell for cell in found.cells}
    assert cells["streamingllm at 40"].difference is None
    assert cells["restkv at 40"].difference is not None


def test_a_second_call_goes_on_from_the_file(pair, data, tmp_path):
    ran = []
    options = {"data": data, "budgets": [40], "results": tmp_path / "rows.jsonl"}
    first = evaluate(pair, **options)
    second = evaluate(pair, **options, on_row=lambda row, new: ran.append(new))
    assert not any(ran)
    assert [row.text for row in second.rows] == [row.text for row in first.rows]


def test_a_prompt_may_be_cut_in_the_middle(pair, data):
    found = evaluate(pair, data=data, budgets=[40], max_prompt_tokens=60)
    # The two words at the cut become one.
    assert {row.tokens for row in found.rows} == {60 - 1}


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({}, InvalidValueError, "there is nothing to evaluate on"),
        ({"data": [{"prompt": 1}]}, DataError, "row 1 of the data: field 'prompt' is 1"),
        (
            {"data": [{"prompt": "a"}, {"prompt": "b", "answer": "c"}]},
            DataError,
            "row 1 of the data has neither 'answer' nor 'answers'",
        ),
        (
            {"tasks": [{"name": "longbench_lcc", "folder": "/no/such"}]},
            DataError,
            "the folder '/no/such' of task 'longbench_lcc' does not exist",
        ),
        ({"tasks": ["nedle"]}, UnknownComponentError, "no task named 'nedle'"),
        ({"tasks": [Needles(), Needles()]}, InvalidValueError, "the same name: Needles, Needles"),
        ({"tasks": [Needles()], "metric": "f1"}, InvalidValueError, "metric is for data"),
        ({"tasks": [Needles()], "question": "in"}, InvalidValueError, "'inside' or 'outside'"),
        ({"tasks": [Needles()], "limit": 0}, InvalidValueError, "limit must be 1 or more"),
        ({"tasks": [Needles()], "baseline": "h2o"}, InvalidValueError, "Choose one of: full"),
        ({"tasks": [Needles()], "metric": 3}, InvalidValueError, "metric is for data"),
        ({"tasks": [Needles()], "recipes": ["no"]}, UnknownComponentError, "no recipe named"),
        ({"tasks": [Needles()], "results": "/no/no.jsonl"}, ResultsError, "cannot open"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_the_work(pair, options, error, sentence):
    with pytest.raises(error, match=sentence):
        evaluate(pair, **options)


def test_a_task_without_samples_is_refused(pair):
    class Empty:
        metric = Metric(name="none")

        def samples(self, tokenizer):
            return []

    with pytest.raises(DataError, match="task 'Empty' has no samples"):
        evaluate(pair, tasks=[Empty()])
