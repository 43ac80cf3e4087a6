"""One comparison of all recipes, small enough for a test, and a made-up one."""

from __future__ import annotations

import pytest

from kvpolicy.evaluation import needle
from kvpolicy.evaluation.comparison import compare
from kvpolicy.evaluation.contenders import contenders
from kvpolicy.evaluation.reader import Reader
from kvpolicy.evaluation.results import Comparison, Row
from kvpolicy.evaluation.survival import Specimen, survivals

TOKENS, BUDGETS = 96, (16, 40)


@pytest.fixture(scope="session")
def reader():
    return Reader(*needle.load())


@pytest.fixture(scope="session")
def questions():
    return needle.generate_prompts(tokens=TOKENS, facts=4, count=9, seed=0)


@pytest.fixture(scope="session")
def compared(reader, questions):
    accepted, refused = contenders(["restkv", "streamingllm"], BUDGETS)
    heard = []
    return compare(reader, questions, accepted, refused, heard.append), accepted, heard


@pytest.fixture(scope="session")
def comparison(compared):
    return compared[0]


@pytest.fixture(scope="session")
def specimen(reader, questions, compared):
    shown = [each for each in compared[1] if each.budget in (None, 40)]
    return Specimen(
        words=reader.words(questions[0]),
        facts=questions[0].facts,
        asked=questions[0].answer_positions,
        budget=40,
        survivals=survivals(reader, questions[0], shown),
    )


@pytest.fixture
def made_up():
    """Build a comparison of 20 prompts from how many each recipe gets right at each budget."""

    def build(full, **recipes):
        rows = [
            _row(name, budget, correct)
            for name, scores in recipes.items()
            for budget, correct in scores.items()
        ]
        return Comparison(
            tokens=200, full=_row("full cache", None, full), rows=tuple(rows), refusals=()
        )

    return build


def _row(name, budget, correct):
    right = (True,) * correct + (False,) * (20 - correct)
    return Row(name=name, budget=budget, right=right, positions=budget or 200, nbytes=1000)
