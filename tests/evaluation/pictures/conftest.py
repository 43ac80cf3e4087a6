"""Cells that were made up: recipes at three budgets beside the full cache."""

from __future__ import annotations

import pytest

from kvpolicy.evaluation.measures.bootstrap import Estimate
from kvpolicy.evaluation.measures.interval import Interval
from kvpolicy.evaluation.reports.summary import Cell


@pytest.fixture
def make_cell():
    def make_cell(entrant, budget, value, **fields):
        given = {
            "task": "t",
            "metric": "f1",
            "larger_is_better": True,
            "samples": 10,
            "errors": 0,
            "error": None,
            "difference": None,
            "positions": 40.0,
            "nbytes": 1024.0 * (budget or 512),
            "footprint": 0.5,
            "first_seconds": 0.5,
            "token_seconds": 0.002,
            "estimate": Estimate(value, Interval(value - 0.1, value + 0.1)),
        }
        return Cell(entrant=entrant, budget=budget, **given | fields)

    return make_cell


@pytest.fixture
def cells(make_cell):
    return [
        make_cell("full", None, 0.9),
        *(make_cell("restkv", budget, 0.8) for budget in (64, 128, 256)),
        *(make_cell("snapkv", budget, budget / 512) for budget in (64, 128, 256)),
    ]
