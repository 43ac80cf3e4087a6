"""The needle stands at its depth, behind a full stop, in texts of every length."""

from __future__ import annotations

import pytest

from kvpolicy.errors import DataError, InvalidValueError
from kvpolicy.evaluation.tasks.haystack import (
    EXPECTED,
    NEEDLE,
    HaystackTask,
    insertion,
    share_of_words,
)
from kvpolicy.task import Sample


@pytest.fixture
def samples(tokenizer):
    task = HaystackTask(shortest=1000, longest=1400, step=200, num_depths=5)
    return list(task.samples(tokenizer))


def test_there_is_a_sample_for_each_length_and_depth(samples):
    assert [(each.extra["length"], each.extra["depth"]) for each in samples] == [
        (length, depth) for length in (1000, 1200, 1400) for depth in (0, 25, 50, 75, 100)
    ]


def test_the_text_has_its_length_without_the_buffer(samples, tokenizer):
    for sample in samples:
        text = sample.context.partition("<book> ")[2]
        assert len(tokenizer(text)["input_ids"]) == sample.extra["length"] - 200


def test_the_needle_stands_at_its_depth_behind_a_full_stop(samples):
    for sample in samples:
        text = sample.context.partition("<book> ")[2]
        before, _, behind = text.partition(NEEDLE)
        depth = 100 * len(before) / (len(before) + len(behind))
        assert sample.extra["depth"] - 12 <= depth <= sample.extra["depth"]
        if 0 < sample.extra["depth"] < 100:
            assert before.endswith(".")


def test_the_question_stands_behind_the_book(samples):
    assert samples[0].question.endswith("San Francisco is: \nAnswer:")
    assert samples[0].context.startswith("<|im_start|> This is a very long story book")


def test_essays_are_the_haystack_where_there_are_some(tokenizer, folder, tmp_path):
    task = HaystackTask(shortest=1000, longest=1000, num_depths=1, folder=str(folder))
    assert "Line 3 says 9!" in next(task.samples(tokenizer)).context
    with pytest.raises(DataError, match=r"cannot read PaulGrahamEssays.json"):
        list(HaystackTask(folder=str(tmp_path)).samples(tokenizer))


@pytest.mark.parametrize(
    ("depth", "place"), [(0, 0), (20, 0), (40, 3), (60, 3), (80, 7), (99, 7), (100, 10)]
)
def test_the_place_is_behind_the_last_full_stop(depth, place):
    assert insertion([5, 5, 9, 5, 5, 5, 9, 5, 5, 5], depth, {9}) == {3: 3, 7: 7}.get(place, place)


def test_the_score_is_the_share_of_the_eleven_words():
    sample = Sample(name="1", answers=(EXPECTED,))
    assert share_of_words(EXPECTED.upper(), sample) == 1
    assert share_of_words("Eat a sandwich", sample) == 3 / 11
    assert share_of_words("nothing", sample) == 0


def test_a_length_without_room_is_said(tokenizer):
    with pytest.raises(InvalidValueError, match="shortest 250 leaves no room for the needle"):
        list(HaystackTask(shortest=250).samples(tokenizer))
