"""A user's rows become samples; a row that is wrong is named with its line and its field."""

from __future__ import annotations

import json

import pytest

from kvpolicy.errors import DataError
from kvpolicy.evaluation.measures.catalogue import METRICS
from kvpolicy.evaluation.tasks.own import OwnTask, read_samples
from kvpolicy.task import Metric


@pytest.fixture
def written(tmp_path):
    def written(*lines):
        file = tmp_path / "mine.jsonl"
        file.write_text(
            "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        )
        return file

    return written


def test_a_prompt_is_read_as_it_is(written):
    [sample] = read_samples(written({"prompt": "one two ", "answers": ["a", "b"]}))
    assert (sample.context, sample.question, sample.answers) == ("one two ", "", ("a", "b"))


def test_a_question_stands_behind_a_blank_line_and_apart_from_the_context(written):
    row = {"context": "text", "question": "why?", "cue": "\nBecause", "answer": "so"}
    [sample] = read_samples(written(row))
    assert (sample.context, sample.question, sample.cue) == ("text", "\n\nwhy?", "\nBecause")


def test_messages_choices_and_limits_are_kept(written):
    row = {
        "messages": [{"role": "user", "content": "hi"}],
        "choices": ["yes", "no"],
        "answer": 1,
        "max_new_tokens": 7,
        "name": "greeting",
        "extra": {"lang": "en"},
    }
    [sample] = read_samples(written(row))
    assert sample.messages == ({"role": "user", "content": "hi"},)
    assert (sample.answers, sample.max_new_tokens) == (("no",), 7)
    assert (sample.name, sample.extra) == ("greeting", {"lang": "en"})


def test_empty_lines_are_passed_over_and_samples_go_by_their_lines(written):
    samples = read_samples(written({"prompt": "a"}, "", {"prompt": "b"}))
    assert [sample.name for sample in samples] == ["1", "3"]


def test_a_byte_order_mark_is_no_fault(tmp_path):
    (tmp_path / "mine.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n')
    assert len(read_samples(tmp_path / "mine.jsonl")) == 1


def test_no_more_is_read_than_is_wanted(written):
    assert len(read_samples(written({"prompt": "a"}, "{"), limit=1)) == 1


GOOD = {"prompt": "a", "answer": "b"}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 2 is no JSON: Expecting property name"),
        ("[" * 100_000, "line 2 is no JSON"),
        ("[1]", r"line 2 is \[1\]. It must be an object"),
        ({"answer": "b"}, "line 2 has nothing to read. It must have 'prompt', or"),
        ({"prompt": "a", "context": "b"}, "line 2 has 'prompt' and 'context'"),
        ({"prompt": "a", "question": "b"}, "line 2 has 'question' beside 'prompt'"),
        ({"prompt": 3}, "line 2: field 'prompt' is 3. It must be a text"),
        ({"prompt": "a", "answr": "b"}, "unknown field 'answr'. Did you mean 'answer'"),
        ({"prompt": "a", "answers": "b"}, "field 'answers' is 'b'. It must be a list of one"),
        ({"prompt": "a", "answers": []}, r"field 'answers' is \[\]"),
        ({"prompt": "a", "answer": None}, "field 'answer' is None"),
        ({"prompt": "a", "answer": True}, "field 'answer' is True"),
        ({"prompt": "a", "answer": "b", "answers": ["b"]}, "has 'answer' and 'answers'"),
        ({"prompt": "a", "choices": ["b"]}, "field 'choices' .* a list of two texts"),
        ({"prompt": "a", "choices": ["b", "c"], "answer": 2}, "There are 2 choices"),
        ({"prompt": "a", "choices": ["b", "c"], "answer": "d"}, "none of the choices"),
        ({"prompt": "a", "max_new_tokens": 0}, "field 'max_new_tokens' is 0"),
        ({"prompt": "a", "name": "1"}, "field 'name' is '1', as in .*line 1"),
        ({"messages": []}, "field 'messages'"),
        ({"messages": [{"role": "user"}]}, "each with the texts 'role' and 'content'"),
        ({"prompt": "a", "extra": 1}, "field 'extra' is 1. It must be an object"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else str(value)[:30],
)
def test_a_wrong_row_is_named_with_its_line_and_field(written, line, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        read_samples(written(GOOD, line))
    assert "mine.jsonl, line 2" in str(caught.value)


def test_a_row_that_is_no_text_is_named(tmp_path):
    (tmp_path / "mine.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match="line 2 is not UTF-8 text"):
        read_samples(tmp_path / "mine.jsonl")


def test_mappings_are_numbered_as_rows():
    with pytest.raises(DataError, match="row 2 of the data: field 'prompt' is 1"):
        read_samples([GOOD, {"prompt": 1}])


@pytest.mark.parametrize("data", [3, {"prompt": "a"}])
def test_data_that_are_no_rows_are_refused(data):
    with pytest.raises(DataError, match="a file of JSON lines, or a list of mappings"):
        read_samples(data)


def test_a_missing_and_an_empty_file_are_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*nowhere.jsonl': No such file"):
        read_samples(tmp_path / "nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"there is no row in .*empty.jsonl"):
        read_samples(tmp_path / "empty.jsonl")


def test_what_a_metric_needs_is_looked_for_first():
    rows = read_samples([{"prompt": "a"}])
    with pytest.raises(DataError, match="row 1 of the data has neither 'answer' nor 'answers'"):
        OwnTask(rows=rows, metric=METRICS["f1"])
    with pytest.raises(DataError, match="row 1 of the data has no 'choices'"):
        OwnTask(rows=read_samples([GOOD]), metric=METRICS["multiple_choice"])
    own = Metric(name="mine:length", judge=lambda text, sample: len(text))
    assert OwnTask(rows=rows, metric=own).samples(None) == rows
