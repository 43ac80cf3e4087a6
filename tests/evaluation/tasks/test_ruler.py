"""RULER's prompts are those of the authors' code, and fit their length."""

from __future__ import annotations

import hashlib
import json

import pytest

from kvpolicy.errors import DataError, InvalidValueError, MissingPackageError
from kvpolicy.evaluation.tasks.plugin import RULER
from kvpolicy.evaluation.tasks.ruler import sources
from kvpolicy.evaluation.tasks.ruler.template import ALL, PART, cleaned
from kvpolicy.task import Sample


class Words:
    """A tokenizer whose tokens are words: an example of variable tracking fits 500 of them."""

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": text.split()}


@pytest.fixture
def make(folder, tokenizer):
    def make(task, length, **options):
        offer = RULER[f"ruler_{task}"]
        needs = {} if task in ("vt", "fwe") else {"folder": str(folder)}
        built = offer(length=length, num_samples=3, **needs | options)
        return built, list(built.samples(Words() if task == "vt" else tokenizer))

    return make


# Of the three prompts and answers that NVIDIA/RULER at c3f5e3b writes from the same words, essays
# and questions, with the same tokenizers and rule for the end of a sentence.
AUTHORS = {
    ("niah_single_1", 3000): "09eab682607abc41",
    ("niah_single_1", 9000): "278da724e0bcf5a0",
    ("niah_single_2", 9000): "cba5e7477601de0f",
    ("niah_single_3", 9000): "d906beee9fd8830b",
    ("niah_multikey_1", 9000): "d795b8b7dcfcadbb",
    ("niah_multikey_2", 3000): "a960ce126ad2c204",
    ("niah_multikey_3", 3000): "2ac78f0ed266d0f5",
    ("niah_multivalue", 9000): "97da26192a2bacee",
    ("niah_multiquery", 9000): "f84422dd10caa989",
    ("vt", 3000): "c6076ed2b3c67324",
    ("vt", 9000): "f371e1a842f658fb",
    ("cwe", 3000): "8477e2e59c675279",
    ("cwe", 9000): "0ccb3531a7ab7f1c",
    ("fwe", 3000): "d590a394f4bf5089",
    ("qa_1", 3000): "c99272f16c3d2abb",
    ("qa_2", 3000): "ed41147595706a02",
}


@pytest.mark.parametrize(("task", "length"), AUTHORS)
def test_the_prompts_are_those_of_the_authors_code(make, task, length):
    _, samples = make(task, length)
    written = [[each.context + each.question + each.cue, list(each.answers)] for each in samples]
    digest = hashlib.sha256(json.dumps(written).encode()).hexdigest()[:16]
    assert digest == AUTHORS[task, length]


def test_all_tasks_are_compared_with_the_authors_code():
    assert {f"ruler_{task}" for task, _ in AUTHORS} == set(RULER)


@pytest.mark.parametrize("task", ["niah_single_1", "niah_multivalue", "vt", "cwe", "fwe", "qa_1"])
@pytest.mark.parametrize("length", [2000, 5000])
def test_a_prompt_and_its_answer_fit_the_length(make, tokenizer, task, length):
    built, samples = make(task, length)
    count = Words() if task == "vt" else tokenizer
    for sample in samples:
        text = sample.context + sample.question + sample.cue
        tokens = len(count(text, add_special_tokens=False)["input_ids"])
        assert tokens + built.new_tokens <= length
        assert sample.max_new_tokens == built.new_tokens
    assert tokens + built.new_tokens > length / 2


def test_room_is_left_for_a_chat_template(make):
    whole, less = (
        len(make("niah_single_1", 3000, template_tokens=tokens)[1][0].context)
        for tokens in (0, 500)
    )
    assert 400 <= whole - less <= 600


def test_needles_are_in_the_context_and_the_question_behind_it(make):
    for sample in make("niah_multiquery", 9000)[1]:
        assert len(sample.answers) == 4
        assert all(f"is: {answer}." in sample.context for answer in sample.answers)
        assert sample.question.startswith("\nWhat are all the special magic numbers for ")
        assert sample.cue.endswith("mentioned in the provided text are")


def test_one_needle_is_asked_for_in_the_singular(make):
    sample = make("niah_single_1", 3000)[1][0]
    assert sample.context.startswith("A special magic number is hidden within")
    assert sample.question.startswith("\nWhat is the special magic number for ")
    assert sample.cue.endswith("mentioned in the provided text is")


def test_another_seed_writes_other_prompts(make):
    assert make("niah_single_1", 3000)[1] != make("niah_single_1", 3000, seed=1)[1]


@pytest.mark.parametrize("task", ["niah_single_2", "fwe", "qa_1", "vt"])
def test_a_length_that_is_too_short_is_said(make, task):
    with pytest.raises(InvalidValueError, match=r"length \d+ is too short"):
        make(task, 150 if task == "vt" else 300)


@pytest.mark.parametrize(
    ("task", "name", "sentence"),
    [
        ("niah_single_2", "PaulGrahamEssays.json", "download_paulgraham_essay.py makes it"),
        ("qa_1", "squad.json", "It is dev-v2.0.json of SQuAD 2.0"),
        ("qa_2", "hotpotqa.json", "It is hotpot_dev_distractor_v1.json"),
    ],
)
def test_a_missing_file_is_named_with_its_origin(make, tmp_path, folder, task, name, sentence):
    for list_of_words in sources.WORDS:
        (tmp_path / list_of_words).write_bytes((folder / list_of_words).read_bytes())
    with pytest.raises(DataError, match=f"cannot read {name} in .*{sentence}"):
        make(task, 9000, folder=str(tmp_path))


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("niah_single_2", r"holds PaulGrahamEssays\.json as option folder=\.\.\. .*3 MB"),
        ("qa_1", r"holds squad\.json as option folder=\.\.\. .* SQuAD 2\.0 \(4\.4 MB\)"),
        ("qa_2", r"holds hotpotqa\.json as option folder=\.\.\. .*HotpotQA \(46 MB\)"),
    ],
)
def test_a_missing_folder_is_said_with_what_it_holds(make, task, sentence):
    with pytest.raises(DataError, match=sentence):
        make(task, 3000, folder=None)


def test_another_file_under_that_name_is_said(make, tmp_path):
    (tmp_path / "squad.json").write_text('{"data": [{"paragraphs": 3}]}')
    with pytest.raises(DataError, match=r"squad.json' is no file of squad"):
        make("qa_1", 3000, folder=str(tmp_path))


def test_essays_may_be_a_folder_of_texts(make, tmp_path, folder):
    essays = json.loads((folder / sources.ESSAYS).read_text())["text"]
    (tmp_path / "a.txt").write_text(essays[:3000])
    (tmp_path / "b.txt").write_text(essays[3000:])
    for list_of_words in sources.WORDS:
        (tmp_path / list_of_words).write_bytes((folder / list_of_words).read_bytes())
    assert make("niah_single_2", 9000, folder=str(tmp_path))[1] == make("niah_single_2", 9000)[1]


def test_words_come_from_a_package_that_may_be_missing(make, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"Install kvpolicy\[eval\]"):
        make("niah_single_1", 3000, folder=str(tmp_path))


@pytest.mark.parametrize("adjectives", [["up", "red", "a"], ["up", "up-front", "up-a", "red"]])
def test_pairs_of_words_are_all_of_them_in_order(adjectives):
    nouns = ["cat", "b", "zoo", "cat"]
    expected = sorted({f"{adjective}-{noun}" for adjective in adjectives for noun in nouns})
    pairs = sources.Pairs(adjectives, nouns)
    assert list(pairs) == expected
    assert len(pairs) == len(expected)


def test_answers_are_scored_as_ruler_does():
    sample = Sample(name="1", answers=("123", "Abc"))
    assert cleaned("\x00 12\t3 ") == "12\n3"
    assert ALL.judge("it is 123, ", sample) == 0.5
    assert ALL.judge("abc 1234", sample) == 1
    assert PART.judge("it is 123, ", sample) == 1
    assert PART.judge("it is 12", sample) == 0
