"""Everyone answers the same prompts; one of them is looked at word by word."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.demo.run import run_demo
from kvpolicy.evaluation.tasks.needle import NeedleTask

# What a module needs is made once, not by every worker.
pytestmark = pytest.mark.xdist_group("demo")

SMALL = NeedleTask(length=64, facts=3, num_samples=2)


@pytest.fixture
def ran(reader):
    def run(recipes, budgets, task=SMALL, **options):
        return run_demo(
            reader.model, reader.tokenizer, task, recipes=recipes, budgets=budgets, **options
        )

    return run


def test_the_full_cache_holds_every_token_of_the_prompt(comparison):
    assert comparison.full.positions == comparison.tokens == 96
    assert comparison.share(comparison.full) == 1


def test_everyone_holds_its_budget_when_the_answer_begins(comparison):
    found = [(each.name, each.budget, each.positions) for each in comparison.standings]
    assert found == [("restkv", 40, 40), ("streamingllm", 16, 16), ("streamingllm", 40, 40)]
    assert all(each.nbytes < comparison.full.nbytes for each in comparison.standings)


def test_everyone_answers_every_prompt_and_is_timed(comparison, questions):
    found = (comparison.full, *comparison.standings)
    assert {each.samples for each in found} == {comparison.prompts} == {len(questions)}
    assert all(each.milliseconds > 0 for each in found)


def test_a_recipe_that_refuses_a_budget_is_listed_with_its_reason(comparison):
    [refusal] = comparison.refusals
    assert (refusal.name, refusal.budget) == ("restkv", 16)
    assert "smaller than the 32 positions" in refusal.reason


def test_every_run_is_heard_of(ran):
    heard = []
    ran(
        ["streamingllm"],
        [16],
        on_start=lambda grid: heard.append(len(grid)),
        on_row=lambda row, ran: heard.append((row.entrant, row.sample, ran)),
    )
    assert heard == [
        4,
        *((name, sample, True) for sample in "01" for name in ("full", "streamingllm")),
    ]


def test_a_share_is_one_of_the_prompt(ran):
    comparison, _ = ran(["streamingllm"], [0.25])
    assert comparison.budgets == (16,)


def test_a_recipe_that_fails_at_work_is_refused_and_the_others_go_on(ran, install_plugin):
    install_plugin(
        "broken",
        """
        import attrs
        from kvpolicy import hookimpl

        @attrs.frozen(kw_only=True)
        class Broken:
            window = None

            def score(self, observation, reduce):
                raise ZeroDivisionError("never scores")

        @hookimpl
        def kvpolicy_scorers():
            return {"broken": Broken}

        @hookimpl
        def kvpolicy_recipes():
            return {"broken": {"scorer": "broken"}}
        """,
    )
    comparison, specimen = ran(["streamingllm", "broken"], [40])
    assert [each.name for each in comparison.standings] == ["streamingllm"]
    [refusal] = comparison.refusals
    assert (refusal.name, refusal.budget) == ("broken", 40)
    assert "ZeroDivisionError: never scores" in refusal.reason
    assert [each.name for each in specimen.survivals] == ["full cache", "streamingllm"]


def test_a_budget_of_the_whole_prompt_changes_no_answer(ran):
    comparison, _ = ran(["restkv"], [64])
    [standing] = comparison.standings
    assert (standing.correct, standing.positions) == (comparison.full.correct, 64)


def test_the_model_is_left_as_it_was(compared, reader):
    assert reader.model.config._attn_implementation == "sdpa"


def test_prompts_that_are_too_long_are_refused_before_they_are_written(ran):
    task = NeedleTask(length=10**9, facts=3, num_samples=2)
    with pytest.raises(InvalidValueError, match="reads at most 4096 tokens"):
        ran(["streamingllm"], [16], task)


def test_a_model_with_another_tokenizer_has_prompts_of_more_tokens(reader):
    """A tokenizer of letters makes 5 tokens of "amber"; the prompts are the same."""
    letters = Tokenizer(
        models.WordLevel({c: n for n, c in enumerate("?. abcdefghijklmnopqrstuvwxyz")}, "?")
    )
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="?", eos_token=".")
    comparison, specimen = run_demo(
        reader.model,
        tokenizer,
        NeedleTask(length=30, facts=2, num_samples=1),
        recipes=["streamingllm"],
        budgets=[16],
    )
    [prompt] = NeedleTask(length=30, facts=2, num_samples=1).prompts()
    assert comparison.tokens == len(specimen.words) == len(prompt.text)
    asked = "".join(specimen.words[place] for place in specimen.asked)
    assert asked.strip() == prompt.answer
