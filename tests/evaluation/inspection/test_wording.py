"""An inspection in words."""

from __future__ import annotations

import pytest

from kvpolicy.evaluation.inspection import wording
from kvpolicy.evaluation.inspection.cause import Cause


def test_the_answers_are_judged(inspected):
    found = inspected("snapkv")
    assert wording.answers(found, "snapkv at 40") == [
        ("expected", found.answer),
        ("full cache", f"{found.full_text} (right)"),
        ("snapkv at 40", f"{found.text} (wrong)"),
    ]


def test_what_is_kept_is_counted(inspected):
    text = wording.kept(inspected("snapkv"))
    assert text.startswith("256 tokens; a key/value head holds 40.0 of them on average (16 %). No")


def test_a_cause_is_a_few_sentences():
    cause = Cause(
        verdict="missing",
        missing=0.75,
        broken=0.25,
        attention=0.0004,
        full_attention=0.2,
        right_if_kept=True,
    )
    assert wording.why(cause) == [
        "Needed tokens are missing.",
        "Of the heads that read them with the full cache, 75 % hold none of them, 25 % hold some, "
        "and 0 % hold them wholly.",
        "Where the answer goes wrong, they get less than 0.1 % of the attention. With the full "
        "cache it is 20 %.",
        "If they are kept, at the same budget, the answer is right.",
    ]


@pytest.mark.parametrize(
    ("cause", "last"),
    [
        (Cause(verdict="full"), "Eviction is not the cause."),
        (Cause(verdict="unknown"), "Give them with --needed."),
        (
            Cause(verdict="broken", broken=1.0, right_if_kept=False),
            "these tokens alone are not enough.",
        ),
        (Cause(verdict="outweighed", whole=1.0), "100 % hold them wholly."),
    ],
)
def test_each_verdict_ends_with_what_is_known(cause, last):
    assert wording.why(cause)[-1].endswith(last)


def test_without_a_cause_there_is_nothing_to_say():
    assert wording.why(None) == []
