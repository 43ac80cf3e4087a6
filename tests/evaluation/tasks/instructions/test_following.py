"""The share of instructions that are followed, and each of them alone."""

from __future__ import annotations

import pytest

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.tasks.instructions.following import InstructionsTask
from kvpolicy.evaluation.tasks.instructions.rules import sentence_of
from kvpolicy.task import Sample


def samples(**options):
    return list(InstructionsTask(**{"num_samples": 5} | options).samples(None))


def test_each_instruction_is_checked_alone_and_the_score_is_their_share():
    rules = [{"kind": "no_comma"}, {"kind": "keyword", "word": "amber"}, {"kind": "lower_case"}]
    sample = Sample(name="1", extra={"rules": rules})
    metric = InstructionsTask().metric
    text = "Red is not amber."
    assert metric.parts(text, sample) == {"no_comma": 1, "keyword": 1, "lower_case": 0}
    assert metric.judge(text, sample) == pytest.approx(2 / 3)
    assert metric.judge("", sample) == 0


def test_a_prompt_tells_all_its_rules_and_then_asks():
    for sample in samples(rules=6):
        lines = sample.context.split("\n- ")[1:]
        assert lines == [sentence_of(rule) for rule in sample.extra["rules"]]
        assert len(lines) == 6
        assert "Write a short text about" in sample.question


def test_noise_follows_each_rule():
    short, long = samples()[0], samples(noise=3)[0]
    assert long.extra == short.extra
    assert long.context.count("\n- ") == 4 * short.context.count("\n- ")
    assert long.context.count("The grass is green.") == 15


def test_a_seed_gives_the_same_prompts():
    assert samples() == samples()
    assert samples(seed=1) != samples()
    assert samples(num_samples=7)[:5] == samples()


def test_more_rules_than_go_together_are_refused():
    with pytest.raises(InvalidValueError, match="'rules' must be"):
        InstructionsTask(rules=11)
