"""One run of the demo, small enough for a test, and a made-up comparison."""

from __future__ import annotations

import pytest

from kvpolicy.evaluation import needle
from kvpolicy.evaluation.demo.run import run_demo
from kvpolicy.evaluation.needle.reader import Reader
from kvpolicy.evaluation.reports.comparison import Comparison, Standing
from kvpolicy.evaluation.tasks.needle import NeedleTask

TOKENS, BUDGETS = 96, (16, 40)


@pytest.fixture(scope="session")
def reader():
    return Reader(*needle.load())


@pytest.fixture(scope="session")
def task():
    return NeedleTask(length=TOKENS, facts=4, num_samples=9)


@pytest.fixture(scope="session")
def questions(task):
    return task.prompts()


@pytest.fixture(scope="session")
def compared(reader, task):
    return run_demo(
        reader.model,
        reader.tokenizer,
        task,
        recipes=["restkv", "streamingllm"],
        budgets=BUDGETS,
    )


@pytest.fixture(scope="session")
def comparison(compared):
    return compared[0]


@pytest.fixture(scope="session")
def specimen(compared):
    return compared[1]


@pytest.fixture
def made_up():
    """Build a comparison of 20 prompts from how many each recipe gets right at each budget."""

    def build(full, **recipes):
        standings = [
            _standing(name, budget, correct)
            for name, scores in recipes.items()
            for budget, correct in scores.items()
        ]
        return Comparison(
            tokens=200,
            full=_standing("full cache", None, full),
            standings=tuple(standings),
            refusals=(),
        )

    return build


def _standing(name, budget, correct):
    return Standing(
        name=name,
        budget=budget,
        correct=correct,
        samples=20,
        positions=budget or 200,
        nbytes=1000,
    )
