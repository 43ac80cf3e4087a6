"""Fidelity: everyone's error and answers on the same prompts, placed between worst and best."""

import json
import math

import attrs
import pytest
import typer
from typer.testing import CliRunner

import kvpolicy
from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.fidelity import table as fidelity_table
from kvpolicy.evaluation.fidelity.entrants import VARIANTS, entrants
from kvpolicy.evaluation.fidelity.measurement import Entrant, fidelity
from kvpolicy.evaluation.fidelity.rows import Estimate, Fidelity, FidelityRow
from kvpolicy.evaluation.measures.reconstruction import reconstruction_error
from kvpolicy.evaluation.reports.comparison import Refusal

# What a module needs is made once, not by every worker.
pytestmark = pytest.mark.xdist_group("fidelity")


def row(name, *errors, budget=40, **fields):
    return FidelityRow(
        name=name, budget=budget, errors=errors, right=(1.0,) * len(errors), **fields
    )


@pytest.fixture(scope="module")
def heard():
    return []


@pytest.fixture(scope="module")
def found(reader, questions, heard):
    accepted, refused = entrants(["restkv", "streamingllm"], [16, 40])
    return fidelity(
        reader, questions, accepted, refused, worst="random", best="oracle", on_batch=heard.append
    )


def test_everyone_takes_part_at_the_budgets_they_accept(found):
    names = {budget: {each.name for each in found.at(budget)} for budget in found.budgets}
    everywhere = {"random", "streamingllm", "oracle", "oracle_single"}
    assert names == {16: everywhere, 40: everywhere | {"restkv", *VARIANTS}}


def test_refusals_say_why(found):
    refused = {each.name: each for each in found.refusals}
    assert set(refused) == {"restkv", *VARIANTS}
    assert refused["restkv"].budget == 16
    assert "smaller than the 32 positions" in refused["restkv"].reason


def test_the_oracle_errs_least_and_chance_most(found):
    for budget in found.budgets:
        ranked = [each.name for each in found.at(budget)]
        assert (ranked[0], ranked[-1]) == ("oracle", "random")
        gaps = [found.gap_closed(each).value for each in found.at(budget)]
        assert (gaps[0], gaps[-1]) == (1, 0)
        assert gaps == sorted(gaps, reverse=True)


def test_a_larger_budget_errs_less(found):
    for name in ("streamingllm", "oracle"):
        assert found.row(name, 40).error.value < found.row(name, 16).error.value


def test_errors_are_the_metrics_for_the_words_of_the_answer(found, reader, questions):
    policy = kvpolicy.recipe("streamingllm", budget=40)
    ids = reader.tokenizer(
        [each.answer for each in questions], add_special_tokens=False, return_tensors="pt"
    )["input_ids"]
    expected = reconstruction_error(reader.model, policy, reader.encode(questions[:1]), ids[:1])
    assert found.words == ids.shape[1] == 3
    assert found.row("streamingllm", 40).errors[0] == pytest.approx(
        float(expected.mean()), rel=1e-3
    )


def test_the_full_cache_answers_for_comparison(found, comparison):
    assert sum(found.full) == comparison.full.correct
    streaming = found.row("streamingllm", 40)
    assert sum(streaming.right) == comparison.of("streamingllm")[40].correct


def test_a_policy_that_keeps_everything_has_no_error(reader, questions):
    keeps = kvpolicy.recipe("streamingllm", budget=1.0)
    everything = Entrant(name="everything", budget=96, policies=lambda recording: [keeps])
    found = fidelity(reader, questions, [everything], worst="everything", best="everything")
    assert set(found.rows[0].errors) == {0.0}
    assert found.rows[0].right == found.full
    assert found.gap_closed(found.rows[0]) is None


def test_several_policies_are_averaged(reader, questions):
    draws = [
        kvpolicy.recipe("random", budget=40, scorer={"name": "random", "seed": seed})
        for seed in range(2)
    ]
    entrants = [
        Entrant(name=name, budget=40, policies=lambda recording, chosen=chosen: chosen)
        for name, chosen in (("first", draws[:1]), ("second", draws[1:]), ("both", draws))
    ]
    found = fidelity(reader, questions[:3], entrants, worst="first", best="both")
    first, second, both = found.rows
    means = [(a + b) / 2 for a, b in zip(first.errors, second.errors, strict=True)]
    assert both.errors == pytest.approx(means)


def test_the_listener_hears_of_every_batch(found, heard, questions):
    assert len(heard) == 2 * len(found.rows)


def test_an_entrant_that_fails_at_work_is_refused_and_the_others_go_on(reader, questions):
    class Broken:
        window = None

        def score(self, observation, reduce):
            raise ZeroDivisionError("never scores")

    broken, fine = (
        kvpolicy.compose(scorer=Broken(), budget=40),
        kvpolicy.recipe("random", budget=40),
    )
    found = fidelity(
        reader,
        questions[:2],
        [
            Entrant(name="broken", budget=40, policies=lambda recording: [broken]),
            Entrant(name="random", budget=40, policies=lambda recording: [fine]),
        ],
        worst="random",
        best="oracle",
    )
    assert [each.name for each in found.rows] == ["random"]
    assert [each.name for each in found.refusals] == ["broken"]
    assert "ZeroDivisionError: never scores" in found.refusals[0].reason
    assert found.gap_closed(found.rows[0]) is None


def test_one_prompt_is_refused(reader, questions):
    with pytest.raises(InvalidValueError, match="1 prompts have no spread: give 2 or more"):
        fidelity(reader, questions[:1], [], worst="random", best="oracle")


def test_the_error_of_a_mean_is_that_of_its_prompts():
    estimate = Estimate.mean([1.0, 2.0, 3.0, 6.0])
    assert estimate == pytest.approx((3.0, math.sqrt(14 / 3 / 4)))


def test_the_gap_is_that_of_the_means_and_shared_prompts_narrow_its_error():
    worst, best = row("worst", 1.0, 2.0, 3.0), row("best", 0.0, 0.0, 0.0)
    half = row("half", 0.5, 1.0, 1.5).gap_closed(worst=worst, best=best)
    other = row("other", 1.5, 1.0, 0.5).gap_closed(worst=worst, best=best)
    assert half == pytest.approx((0.5, 0.0))
    assert other.value == pytest.approx(0.5)
    # Left-out shares: 1 - 1.5/5, 1 - 2/4 and 1 - 2.5/3.
    shares = [0.7, 0.5, 0.5 / 3]
    middle = sum(shares) / 3
    jackknife = math.sqrt(2 / 3 * sum((share - middle) ** 2 for share in shares))
    assert other.error == pytest.approx(jackknife)


def test_a_difference_is_taken_prompt_by_prompt():
    assert row("a", 0.5, 1.5).minus(row("b", 0.25, 1.25)) == (0.25, 0.0)


def test_the_data_is_plain_and_complete(found):
    data = json.loads(json.dumps(found.to_dict()))
    assert data["tokens"] == 96
    assert data["prompts"] == 9
    assert data["refusals"] == [attrs.asdict(refusal) for refusal in found.refusals]
    assert len(data["rows"]) == len(found.rows)
    first, data = found.rows[0], data["rows"][0]
    assert data["name"] == first.name
    assert tuple(data["errors"]) == first.errors
    assert data["error"] == {"value": first.error.value, "error": first.error.error}
    assert data["gap_closed"].keys() == {"value", "error"}


def test_settings_are_compared_prompt_by_prompt_in_the_notes():
    rows = row("restkv", 0.5, 0.5), row("restkv, joint", 0.25, 0.25)
    made_up = Fidelity(
        tokens=96,
        words=3,
        worst="random",
        best="oracle",
        full=(True, False),
        rows=rows,
        refusals=(Refusal(name="other", budget=40, reason="too small."),),
    )
    assert list(fidelity_table.notes(made_up)) == [
        "The full cache answers 1 of 2 prompts right; its error is 0.",
        "'restkv, joint' against 'restkv', prompt by prompt: -0.2500 ± 0.0000 at 40.",
        "other refuses 40: too small.",
    ]


ASKED = {"prompts": 2, "tokens": 64, "facts": 4, "seed": 0}


@pytest.fixture(scope="module")
def measured():
    """Two budgets of one recipe, measured once for all styles of the table."""
    return fidelity_table.measure(["streamingllm"], [12, 24], **ASKED)


@pytest.mark.parametrize("style", ["--json", "--markdown", None])
def test_the_command_prints_every_row(style, measured, monkeypatch):
    def measure(names, budgets, **asked):
        assert (names, budgets, asked) == (["streamingllm"], [12, 24], ASKED)
        return measured

    monkeypatch.setattr(fidelity_table, "measure", measure)
    app = typer.Typer()
    app.command()(fidelity_table.main)
    options = "--recipe streamingllm --budgets 12,24 --prompts 2 --tokens 64 --facts 4".split()
    said = CliRunner().invoke(app, options + ([style] if style else []))
    assert said.exit_code == 0, said.output
    names = {"streamingllm", "random", "oracle", "oracle_single"}
    if style == "--json":
        rows = json.loads(said.stdout)["rows"]
        assert {each["name"] for each in rows} == names
        assert {each["budget"] for each in rows} == {12, 24}
    else:
        assert all(said.stdout.count(name) >= 2 for name in names)
        assert "12 of 64 positions" in said.stdout
        assert "100 ± 0 %" in said.stdout
