"""Rows that were made up: two recipes and the full cache on ten samples."""

from __future__ import annotations

import pytest

from kvpolicy.evaluation.runs.row import Row

RUN = {
    "model": {"name": "org/model", "class": "M", "dtype": "torch.float32"},
    "machine": {"packages": {"torch": "2.0"}},
}


@pytest.fixture
def make_row():
    def make_row(sample, entrant="full", budget=None, score=1.0, **fields):
        given = {
            "key": f"{fields.get('task')} {sample} {entrant} {budget}",
            "task": "needles",
            "metric": "f1",
            "question": "inside",
            "positions": 100.0 if budget is None else 40.0,
            "nbytes": 4096 if budget is None else 1024,
            "footprint": 50,
            "full_footprint": 100,
            "first_seconds": 0.5,
            "token_seconds": 0.002,
            "run": RUN,
        }
        return Row(sample=sample, entrant=entrant, budget=budget, score=score, **given | fields)

    return make_row


@pytest.fixture
def rows(make_row):
    scores = {
        ("full", None): [1] * 10,
        ("restkv", 64): [1] * 8 + [0] * 2,
        ("snapkv", 64): [1] * 5 + [0] * 5,
        ("restkv", 0.25): [0.5] * 10,
    }
    return [
        make_row(str(sample), entrant, budget, float(score))
        for (entrant, budget), found in scores.items()
        for sample, score in enumerate(found)
    ]
