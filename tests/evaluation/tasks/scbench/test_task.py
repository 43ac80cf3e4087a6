"""Shared contexts fit a length, and a seed gives the same ones."""

from __future__ import annotations

from itertools import groupby

import pytest

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.tasks.scbench.task import TASKS, SharedContextTask


def samples(tokenizer, task, **options):
    given = {"length": 3000, "contexts": 3} | options
    return list(SharedContextTask(task=task, **given).samples(tokenizer))


def tokens(tokenizer, sample):
    text = sample.context + sample.question + sample.cue
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("task", TASKS)
def test_there_are_five_questions_on_each_context(tokenizer, task):
    found = samples(tokenizer, task)
    groups = [list(group) for _, group in groupby(found, lambda sample: sample.context)]
    assert [len(group) for group in groups] == [5, 5, 5]
    assert len({sample.name for sample in found}) == 15


@pytest.mark.parametrize("length", [3000, 4500])
@pytest.mark.parametrize("task", TASKS)
def test_a_prompt_and_its_answer_fill_the_length(tokenizer, task, length):
    found = samples(tokenizer, task, length=length)
    used = [tokens(tokenizer, sample) + sample.max_new_tokens for sample in found]
    assert max(used) <= length
    assert max(used) > 0.94 * length


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_gives_the_same_texts_and_more_contexts_are_added_at_the_end(tokenizer, task):
    first, longer = samples(tokenizer, task), samples(tokenizer, task, contexts=4)
    assert longer[:15] == first
    assert samples(tokenizer, task, seed=1)[0].context != first[0].context


def test_new_tokens_and_scores_are_scbenchs(tokenizer):
    limits = {task: samples(tokenizer, task)[0].max_new_tokens for task in TASKS}
    assert limits == {"kv": 150, "prefix_suffix": 150, "vt": 30, "many_facts": 30}
    [sample, *_] = samples(tokenizer, "vt", new_tokens=64)
    assert sample.max_new_tokens == 64
    metric = SharedContextTask(task="vt").metric
    assert metric.judge(" ".join(sample.answers[:2]), sample) == pytest.approx(2 / 5)


def test_a_chat_template_gets_room(tokenizer):
    found = samples(tokenizer, "kv", template_tokens=500)
    assert max(tokens(tokenizer, sample) for sample in found) <= 3000 - 150 - 500


def test_a_length_without_room_for_the_questions_is_said(tokenizer):
    with pytest.raises(InvalidValueError, match=r"50 tokens for a prompt, but the shortest .* 5 q"):
        samples(tokenizer, "kv", length=200)
    with pytest.raises(InvalidValueError, match="'task' must be"):
        SharedContextTask(task="kw")
