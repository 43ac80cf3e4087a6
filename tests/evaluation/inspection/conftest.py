"""The needle model, and prompts that some policies answer wrong."""

from __future__ import annotations

import pytest

import kvpolicy
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.inspection.inspection import inspect
from kvpolicy.evaluation.inspection.prompt import tokenized


@pytest.fixture(scope="session")
def needle_model():
    return needle.load()


@pytest.fixture(scope="session")
def questions():
    return needle.generate_prompts(tokens=256, facts=16, count=3, seed=0)


@pytest.fixture(scope="session")
def inspected(needle_model, questions):
    """Inspect one of the prompts under a recipe at 40 positions."""
    model, tokenizer = needle_model

    def inspected(recipe, number=1, answer=None, needed=None, budget=40, **options):
        question = questions[number]
        return inspect(
            model,
            tokenizer,
            tokenized(tokenizer, question.text),
            kvpolicy.recipe(recipe, budget=budget, **options),
            answer=question.answer if answer is None else answer,
            needed=needed,
            max_new_tokens=4,
        )

    return inspected
