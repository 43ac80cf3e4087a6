"""Everyone answers the same questions; rows say what each cache held, refusals say why not."""

from __future__ import annotations

import attrs
import pytest
import torch

from kvpolicy import compose
from kvpolicy.evaluation.caches import opened_cache, shares_held
from kvpolicy.evaluation.comparison import compare
from kvpolicy.evaluation.contenders import Contender, contenders
from kvpolicy.evaluation.timing import decode_milliseconds
from kvpolicy.huggingface.report import report_of


def test_the_full_cache_holds_every_token_of_the_prompt(comparison):
    assert comparison.full.positions == comparison.tokens == 96
    assert comparison.share(comparison.full) == 1


def test_every_row_holds_its_budget(comparison):
    assert [(row.name, row.budget) for row in comparison.rows] == [
        ("restkv", 40),
        ("streamingllm", 16),
        ("streamingllm", 40),
    ]
    restkv, *streaming = comparison.rows
    assert restkv.positions == restkv.budget
    # It evicts at every token: those of the answer have pushed some of the prompt out.
    assert all(row.budget - 8 <= row.positions < row.budget for row in streaming)


def test_bytes_are_those_of_one_prompt(comparison, reader, questions):
    with opened_cache(reader.model, None) as cache:
        reader.answer(questions[:1], cache)
        assert report_of(cache).nbytes == pytest.approx(comparison.full.nbytes, rel=0.05)
    assert all(row.nbytes < comparison.full.nbytes for row in comparison.rows)


def test_everyone_answers_every_question(comparison, questions):
    rows = (comparison.full, *comparison.rows)
    assert {len(row.right) for row in rows} == {comparison.prompts} == {len(questions)}


def test_the_listener_hears_of_every_batch(compared):
    _, accepted, heard = compared
    assert heard == [contender for contender in accepted for _ in range(2)]


def test_decoding_is_timed_for_everyone(comparison):
    assert all(row.milliseconds > 0 for row in (comparison.full, *comparison.rows))


def test_a_recipe_that_refuses_a_budget_is_listed_with_its_reason(comparison):
    [refusal] = comparison.refusals
    assert (refusal.name, refusal.budget) == ("restkv", 16)
    assert "smaller than the 32 positions" in refusal.reason
    assert comparison.names == ("restkv", "streamingllm")


def test_a_policy_that_fails_at_work_is_refused_and_the_others_go_on(reader, questions):
    class Broken:
        window = None

        def score(self, observation, reduce):
            raise ZeroDivisionError("never scores")

    accepted, refused = contenders(["streamingllm"], [40])
    broken = Contender(name="broken", budget=40, policy=compose(scorer=Broken(), budget=40))
    comparison = compare(reader, questions[:1], [*accepted, broken], refused, lambda _: None)
    assert [row.name for row in comparison.rows] == ["streamingllm"]
    [refusal] = comparison.refusals
    assert (refusal.name, refusal.budget) == ("broken", 40)
    assert "ZeroDivisionError: never scores" in refusal.reason


def test_a_budget_of_the_whole_prompt_changes_no_answer(reader, questions):
    accepted, _ = contenders(["restkv"], [96])
    comparison = compare(reader, questions, accepted, [], lambda _: None)
    [row] = comparison.rows
    assert (row.right, row.positions) == (comparison.full.right, 96)


def test_the_model_is_left_as_it_was(compared, reader):
    assert reader.model.config._attn_implementation == "sdpa"


def test_the_data_is_plain_and_complete(comparison):
    data = comparison.to_dict()
    assert [row["name"] for row in data["rows"]] == ["full cache", "restkv"] + 2 * ["streamingllm"]
    assert data["rows"][0]["interval"] == list(comparison.full.interval)
    assert data["refusals"] == [attrs.asdict(refusal) for refusal in comparison.refusals]


def test_shares_are_those_of_layers_and_heads(reader, questions):
    [_, contender], _ = contenders(["streamingllm"], [20])
    prompt = reader.encode(questions[:2])
    with opened_cache(reader.model, contender.policy) as cache, torch.inference_mode():
        reader.model(input_ids=prompt, past_key_values=cache)
        reader.model(input_ids=prompt[:, :1], past_key_values=cache)
        shares = shares_held(cache, prompt)
    # The token decoded since has taken the place of the oldest recent one.
    assert shares.tolist() == 2 * [4 * [1.0] + 77 * [0.0] + 15 * [1.0]]


def test_every_policy_is_timed_after_the_same_prompt(reader, questions):
    policies = [None, compose(scorer="streamingllm", budget=20)]
    times = decode_milliseconds(reader.model, reader.encode(questions[:1]), policies, steps=2)
    assert len(times) == 2
    assert min(times) > 0


def test_the_telling_budget_is_where_best_and_worst_are_furthest_apart(made_up):
    comparison = made_up(20, a={10: 1, 20: 18, 40: 19}, b={10: 0, 20: 1, 40: 2})
    assert comparison.telling_budget == 20
    assert [row.name for row in comparison.at(20)] == ["a", "b"]
    assert list(comparison.of("b")) == [10, 20, 40]
