"""Synthetic tasks write samples of any length, or read those of a file."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from kvpolicy.errors import DataError, InvalidValueError
from kvpolicy.evaluation.tasks.groups import GROUPS
from kvpolicy.evaluation.tasks.infinitebench.generators import GENERATORS
from kvpolicy.evaluation.tasks.infinitebench.synthetic import SYNTHETIC, SyntheticTask
from kvpolicy.testing import check


@pytest.mark.parametrize("task", SYNTHETIC)
def test_prompts_fill_the_length_that_is_given(task, tokenizer):
    samples = list(SyntheticTask(task=task, length=3000, num_samples=10).samples(tokenizer))
    lengths = [len(tokenizer(each.context + each.question)["input_ids"]) for each in samples]
    assert max(lengths) <= 3000
    assert min(lengths) > 2700
    assert [each.name for each in samples] == [str(number) for number in range(10)]
    assert not any(each.chat for each in samples)


@pytest.mark.parametrize("task", SYNTHETIC)
def test_a_task_keeps_its_contract(task):
    check("task", SyntheticTask(task=task, length=1500, num_samples=5))


def test_without_a_length_the_size_is_infinitebenchs():
    samples = list(SyntheticTask(task="passkey").samples(None))
    assert len(samples) == 590
    assert {each.context.count("\n") for each in samples} == {5220 + 3}
    places = [each.context.split("The pass key is")[0].count("\n") - 2 for each in samples]
    assert places == [number // 10 * 90 for number in range(590)]


@pytest.mark.parametrize("task", [task for task in SYNTHETIC if task != "passkey"])
def test_a_first_sample_of_infinitebenchs_size(task):
    [sample] = islice(SyntheticTask(task=task).samples(None), 1)
    unit = {"number_string": NEEDLE, "kv_retrieval": '": "', "code_run": "def func_"}.get(task)
    if unit:
        assert sample.context.count(unit) == GENERATORS[task].size
    else:
        assert len(sample.context.split(" ")) > GENERATORS[task].size


NEEDLE = "The grass is green."


def test_another_seed_gives_other_samples():
    first, again, other = (
        next(SyntheticTask(task="kv_retrieval", num_samples=1, seed=seed).samples(None)).answers
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_few_samples_go_through_all_depths_and_kinds(tokenizer):
    def samples(task, number):
        return SyntheticTask(task=task, length=3000, num_samples=number).samples(tokenizer)

    kinds = [each.context.partition("\n")[0] for each in samples("math_find", 7)]
    assert len(set(kinds)) == 7
    depths = [each.context.find("The pass key is") for each in samples("passkey", 4)]
    assert depths == sorted(set(depths))


def test_as_many_tokens_are_decoded_as_in_the_preset(tokenizer):
    def limit(task, **options):
        return next(SyntheticTask(task=task, **options).samples(tokenizer)).max_new_tokens

    assert [limit("passkey", preset=preset) for preset in ("official", "restkv")] == [6, 15]
    assert limit("passkey", new_tokens=9) == 9
    assert limit("math_calc") == 30000
    task = SyntheticTask(task="math_calc", length=2000)
    sample = next(task.samples(tokenizer))
    numbers = len(sample.context.rpartition("Expression: ")[2].replace("+", "-").split(" - "))
    assert sample.max_new_tokens == 2 * numbers


def test_a_folder_has_the_samples(tmp_path):
    line = {"id": 4, "context": "Noise.", "input": "What is the pass key?", "answer": ["71432"]}
    (tmp_path / "passkey.jsonl").write_text(json.dumps(line))
    [sample] = SyntheticTask(task="passkey", folder=str(tmp_path)).samples(None)
    assert (sample.answers, sample.max_new_tokens) == (("71432",), 6)
    with pytest.raises(DataError, match=r"cannot read code_run\.jsonl"):
        next(SyntheticTask(task="code_run", folder=str(tmp_path)).samples(None))


@pytest.mark.parametrize("option", ["length", "num_samples"])
def test_a_folder_and_a_size_contradict_each_other(option):
    with pytest.raises(InvalidValueError, match="Give the folder alone, or no folder"):
        SyntheticTask(task="passkey", folder="data", **{option: 5})


@pytest.mark.parametrize("task", SYNTHETIC)
def test_a_length_that_holds_nothing_is_refused(task, tokenizer):
    with pytest.raises(InvalidValueError, match="length 100 is too short"):
        next(SyntheticTask(task=task, length=100).samples(tokenizer))


def test_the_synthetic_tasks_are_a_group():
    assert len(GROUPS["infinitebench_synthetic"]) == 6
    assert set(GROUPS["infinitebench_synthetic"]) < set(GROUPS["infinitebench"])
