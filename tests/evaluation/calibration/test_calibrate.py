"""Rows of an evaluation become the smallest budget that keeps a promise, or a reason why not."""

import json

import pytest

import kvpolicy
from kvpolicy.budget import Within
from kvpolicy.errors import InvalidValueError, NotExchangeableWarning
from kvpolicy.evaluation.calibration import calibrate
from kvpolicy.evaluation.runs.row import Row


def row(sample, entrant, budget, score, *, task="mine", tokens=500, asks="text", **fields):
    policy = None
    if budget is not None:
        policy = kvpolicy.recipe(entrant, budget=budget).to_dict()
    return Row(
        key=f"{task} {sample} {entrant} {budget}", task=task, metric="f1", sample=str(sample),
        question="inside", entrant=entrant, budget=budget, score=score, policy=policy,
        tokens=tokens, asks=asks, prompt=f"{task} {sample}", **fields,
    )  # fmt: skip


def rows(count=19, *, budgets=(64, 128, 256), needed=lambda sample: 128, **fields):
    """Samples that the recipe answers from `needed(sample)` positions on, the full cache always."""
    for sample in range(count):
        yield row(sample, "full", None, 1.0, **fields)
        for budget in budgets:
            score = 1.0 if budget >= needed(sample) else 0.4
            yield row(sample, "snapkv", budget, score, **fields)


def test_the_smallest_budget_that_keeps_the_promise():
    found = calibrate(rows(), recipe="snapkv", alpha=0.1, bound=0.1)
    assert found.budget == 128
    assert [each.exceeded for each in found.candidates] == [19, 0, 0]
    assert found.candidates[1].risk == 1 / 20
    assert found.policy == kvpolicy.recipe("snapkv", budget=128)
    assert "snapkv at 128: the next prompt loses more than 0.1 of f1" in str(found)
    json.dumps(found.to_dict())


def test_a_larger_bound_or_alpha_allows_less():
    assert calibrate(rows(), recipe="snapkv", alpha=0.1, bound=0.7).budget == 64
    some = list(rows(40, needed=lambda sample: 256 if sample < 4 else 64))
    assert calibrate(some, recipe="snapkv", alpha=0.1).budget == 256
    assert calibrate(some, recipe="snapkv", alpha=0.2).budget == 64


def test_no_budget_may_do():
    found = calibrate(rows(needed=lambda sample: 999), recipe="snapkv", alpha=0.1)
    assert found.budget is None
    assert found.policy is None
    assert "No budget keeps the promise" in str(found)


def test_error_targets_are_budgets_too():
    targets = [Within(0.5), Within(0.1), Within(0.02)]
    given = [row(sample, "full", None, 1.0) for sample in range(19)]
    given += [
        row(sample, "snapkv", target, float(target.error < 0.2))
        for sample in range(19)
        for target in targets
    ]
    assert calibrate(given, recipe="snapkv", alpha=0.1).budget == Within(0.1)


def test_perplexity_loses_by_growing():
    given = []
    for sample in range(19):
        given += [
            row(sample, "full", None, 2.0, asks="stream"),
            row(sample, "snapkv", 64, 2.5, asks="stream"),
            row(sample, "snapkv", 128, 1.9, asks="stream"),
        ]
    assert calibrate(given, recipe="snapkv", alpha=0.1, bound=0.1).budget == 128


def test_a_run_that_failed_exceeds_every_bound():
    given = [each for each in rows(19) if (each.sample, each.budget) != ("3", 128)]
    given.append(row(3, "snapkv", 128, None, error="too long"))
    found = calibrate(given, recipe="snapkv", alpha=0.1, bound=9)
    assert [each.exceeded for each in found.candidates] == [1, 1, 0]


def test_prompts_on_which_the_full_cache_failed_are_left_out_and_named():
    given = [*rows(19), row(99, "full", None, None, error="too long")]
    found = calibrate(given, recipe="snapkv", alpha=0.1)
    assert found.samples == 19
    assert found.notes == ("1 prompts are left out: the full cache failed on them.",)


def test_lengths_that_are_not_alike_are_warned_of():
    with pytest.warns(NotExchangeableWarning, match="not exchangeable in length"):
        found = calibrate(rows(), recipe="snapkv", alpha=0.1, lengths=[4000, 5000] * 8)
    assert "500 to 500, with a median of 500; those to come have 4000" in str(found).replace(
        " tokens", ""
    )
    mixed = [*rows(30)]
    mixed += [
        row(100 + sample, *which, tokens=4000)
        for sample in range(30)
        for which in (
            ("full", None, 1.0),
            ("snapkv", 64, 1.0),
            ("snapkv", 128, 1.0),
            ("snapkv", 256, 1.0),
        )
    ]
    with pytest.warns(
        NotExchangeableWarning, match="first half .* 500 tokens, the second one of 4000"
    ):
        calibrate(mixed, recipe="snapkv", alpha=0.1)


def test_prompts_that_repeat_are_warned_of():
    given = list(rows(18))
    given += [row(50, "full", None, 1.0), row(50, "snapkv", 128, 1.0)]
    twin = Row(**{**given[0].to_dict(), "key": "twin", "sample": "twin"})
    with pytest.warns(NotExchangeableWarning, match="1 of 20 calibration prompts repeat"):
        calibrate([*given, twin], recipe="snapkv", alpha=0.1, bound=9)


@pytest.mark.parametrize(
    ("given", "changes", "message"),
    [
        (rows(8), {}, "8 calibration prompts are too few for alpha 0.1: .* at least 9"),
        (rows(), {"recipe": "snapvk"}, "no rows of the recipe 'snapvk'. Did you mean 'snapkv'?"),
        (rows(), {"task": "other"}, "no rows of the task 'other'.* mine"),
        ([*rows(), *rows(task="two")], {}, "rows of 2 tasks: mine, two. Choose one"),
        (rows(budgets=(64, 0.5)), {}, "64, 50 % are of several kinds"),
        (rows(), {"alpha": 2}, "above 0 and below 1"),
    ],
)
def test_what_promises_nothing_is_refused(given, changes, message):
    with pytest.raises(InvalidValueError, match=message):
        calibrate(list(given), **{"recipe": "snapkv", "alpha": 0.1} | changes)


def test_the_command_writes_the_policy(run, tmp_path):
    file, output = tmp_path / "rows.jsonl", tmp_path / "policy.json"
    file.write_text("".join(json.dumps(each.to_dict()) + "\n" for each in rows()))
    command = ("calibrate", str(file), "--recipe", "snapkv", "--bound", "0.1")
    result = run(*command, "--output", str(output))
    assert result.exit_code == 0, result.output
    assert "| 128 | 0 of 19 | 5.0% |" in result.stdout
    assert json.loads(output.read_text())["budget"] == 128
    assert run(*command, "--alpha", "0.01").exit_code == 2
    assert "are too few for alpha 0.01" in run(*command, "--alpha", "0.01").stderr
    assert json.loads(run(*command, "--json").stdout)["budget"] == 128
