"""Texts are cut into stretches; each is read bit by bit, and evicted after each bit."""

from __future__ import annotations

import json
import math

import pyarrow
import pyarrow.parquet
import pytest
import torch

import kvpolicy
from kvpolicy.errors import DataError, InvalidValueError
from kvpolicy.evaluation.tasks.perplexity import PerplexityTask
from kvpolicy.evaluation.tasks.plugin import kvpolicy_tasks
from kvpolicy.testing import tiny_model

TEXT = "".join(f"Line {number} is {number * number % 89}. " for number in range(40))


@pytest.fixture(scope="module")
def model():
    return tiny_model("qwen3", vocab_size=300)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "book.txt").write_text(TEXT)
    return str(tmp_path / "book.txt")


def evaluate(model, tokenizer, file, *, recipes=(), budgets=(), **options):
    task = PerplexityTask(path=file, length=100, num_samples=3, **options)
    found = kvpolicy.evaluate(model, tokenizer, tasks=[task], recipes=recipes, budgets=budgets)
    assert all(row.policy["every"] == 1 for row in found.rows if row.policy and task.chunk == 1)
    return {cell.title: cell for cell in found.cells}


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_the_full_cache_has_the_perplexity_of_one_forward(model, tokenizer, file, chunk):
    found = evaluate(model, tokenizer, file, chunk=chunk)["full"]
    losses = []
    for start in (0, 100, 200):
        ids = torch.tensor([tokenizer(TEXT)["input_ids"][start : start + 100]])
        with torch.inference_mode():
            logits = model(ids).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))
    expected = math.exp(torch.stack(losses).mean())
    assert found.estimate.value == pytest.approx(expected, rel=1e-3)
    assert not found.larger_is_better


@pytest.mark.parametrize("chunk", [1, 10])
def test_a_policy_holds_its_budget_all_along(model, tokenizer, file, chunk):
    found = evaluate(
        model, tokenizer, file, recipes=["streamingllm"], budgets=[24, 200], chunk=chunk
    )
    assert found["streamingllm at 24"].positions <= 24
    assert found["streamingllm at 24"].estimate.value != found["full"].estimate.value
    assert found["streamingllm at 200"].estimate.value == pytest.approx(
        found["full"].estimate.value, rel=1e-4
    )


def test_single_tokens_are_evicted_after_by_every_policy(model, tokenizer, file):
    found = evaluate(model, tokenizer, file, recipes=["snapkv"], budgets=[40], chunk=1)
    assert found["snapkv at 40"].positions == 40


@pytest.mark.parametrize(("join", "between"), [("nothing", ""), ("blank line", "\n\n")])
def test_pieces_are_joined_as_asked(tokenizer, tmp_path, join, between):
    rows = [{"text": "one two "}, {"text": "three"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "zebra.txt").write_text("four")
    task = PerplexityTask(path=str(tmp_path), length=10, num_samples=1, join=join)
    whole = between.join(["one two ", "three", "four"])
    assert next(task.samples(tokenizer)).context == whole[:10]


WIKITEXT = " \n = Title = \n \n A line . \n \n"


@pytest.mark.parametrize(
    ("join", "expected"),
    [
        ("nothing", " = Title = \n A line . \n"),
        ("blank line", "\n\n = Title = \n\n\n\n\n A line . \n\n\n"),
    ],
)
def test_lines_of_wikitext_are_rows_as_on_the_hub(tokenizer, tmp_path, join, expected):
    (tmp_path / "wiki.test.raw").write_text(WIKITEXT)
    rows = ["", " = Title = \n", "", " A line . \n", ""]  # of wikitext-2-raw-v1 on the hub
    table = pyarrow.table({"text": rows})
    pyarrow.parquet.write_table(table, tmp_path / "test-00000-of-00001.parquet")
    for name in ("wiki.test.raw", "test-00000-of-00001.parquet"):
        path = str(tmp_path / name)
        task = PerplexityTask(path=path, length=len(expected), join=join, num_samples=1)
        assert [sample.context for sample in task.samples(tokenizer)] == [expected]


def test_another_column_may_hold_the_texts(tokenizer, tmp_path):
    pages = [{"page": "one two", "text": 3}, {"page": " three"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, pages)))
    pyarrow.parquet.write_table(
        pyarrow.table({"page": ["one two", " three"]}), tmp_path / "rows.parquet"
    )
    for name in ("rows.jsonl", "rows.parquet"):
        task = PerplexityTask(path=str(tmp_path / name), column="page", length=13)
        assert [sample.context for sample in task.samples(tokenizer)] == ["one two three"]


def test_no_more_of_a_long_text_is_read_than_is_asked_for(tokenizer, tmp_path):
    # Each row is 40 characters long; the last one is none.
    rows = [json.dumps({"text": f"row {place:04}, ".ljust(40, ".")}) for place in range(500)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, json.dumps({"text": None})]))
    path = str(tmp_path / "rows.jsonl")
    stretches = [
        sample.context
        for sample in PerplexityTask(path=path, length=100, num_samples=4).samples(tokenizer)
    ]
    assert "".join(stretches) == "".join(json.loads(row)["text"] for row in rows)[:400]
    with pytest.raises(DataError, match=r"line 501: field 'text' is None"):
        list(PerplexityTask(path=path, length=100, num_samples=200).samples(tokenizer))


def test_a_text_with_many_characters_for_a_token_is_read_on(tmp_path):
    (tmp_path / "book.txt").write_text(" ".join(["strawberries"] * 300))
    (tmp_path / "other.txt").write_text(" " + " ".join(["strawberries"] * 300))
    task = PerplexityTask(path=str(tmp_path), length=100, num_samples=5)
    assert len(list(task.samples(words()))) == 5


def words():
    """A tokenizer that takes each word for a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"strawberries": 0, "?": 1}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?")


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("wikitext2", r"wikitext-2-raw-v1/test-.*\.parquet \(0\.7 MB\).* Salesforce/wikitext on"),
        ("pg19", r"data/test-.*\.parquet \(25 MB\) of the data set emozilla/pg19-test on"),
    ],
)
def test_a_data_set_comes_from_the_hub(monkeypatch, tmp_path, tokenizer, name, origin):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    task = kvpolicy_tasks()[f"perplexity_{name}"](length=9)
    with pytest.raises(DataError, match=rf"{origin}.*option path=\.\.\."):
        list(task.samples(tokenizer))
    file = tmp_path / "test.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one two", " three"]}), file)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(file))
    assert next(task.samples(tokenizer)).context == "one two t"


def test_a_path_or_a_data_set_must_be_given():
    with pytest.raises(
        InvalidValueError, match=r"'path' is missing, and no 'dataset' \(wikitext2,"
    ):
        PerplexityTask()


def test_stretches_follow_one_another_and_a_rest_is_left_out(tokenizer, file):
    task = PerplexityTask(path=file, length=300, num_samples=9)
    stretches = [sample.context for sample in task.samples(tokenizer)]
    assert "".join(stretches) == TEXT[: 300 * len(stretches)]
    assert 300 * (len(stretches) + 1) > len(TEXT)


def test_what_cannot_be_read_is_said(tokenizer, tmp_path, file):
    def samples(path, **options):
        return list(PerplexityTask(path=str(path), **options).samples(tokenizer))

    with pytest.raises(DataError, match=r"cannot read nowhere\.txt"):
        samples(tmp_path / "nowhere.txt")
    with pytest.raises(InvalidValueError, match="fewer than length 5,000"):
        samples(file, length=5000)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"page": "b"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2 has no field 'text'\. Fields: page"):
        samples(tmp_path / "rows.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no text in"):
        samples(tmp_path / "empty")
