"""Texts are cut into stretches; each is read bit by bit, and evicted after each bit."""

from __future__ import annotations

import json
import math

import pytest
import torch

import kvpolicy
from kvpolicy.errors import DataError, InvalidValueError
from kvpolicy.evaluation.tasks.perplexity import PerplexityTask
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
