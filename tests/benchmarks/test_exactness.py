"""The committed page is what the committed measurements say, and no cell is wrong or silent."""

import pytest

from benchmarks.exactness.cells import COLUMNS, LIMIT, Line
from benchmarks.exactness.page import PAGE, counts, read, rendered
from kvpolicy.exactness.architectures import model_types


@pytest.fixture(scope="module")
def lines():
    return read()


def test_the_page_is_made_of_what_was_measured(lines):
    assert PAGE.read_text() == rendered(lines)


def test_no_cell_is_wrong_or_silent(lines):
    assert counts(lines)["wrong"] == 0
    for line in lines:
        assert line.refused is not None or list(line.cells) == list(COLUMNS)


def test_every_model_type_is_there(lines):
    measured = [line.subject for line in lines if line.table == "architectures"]
    assert len(measured) > 150
    assert len(set(measured) ^ set(model_types())) <= 20, "transformers of another version"


def test_at_least_forty_architectures_are_served(lines):
    served = [line for line in lines if line.table == "architectures" and line.refused is None]
    assert sum(line.outcomes["one prompt"] == "exact" for line in served) >= 40


@pytest.mark.parametrize(
    ("cell", "outcome"),
    [
        (LIMIT, "exact"),
        (2 * LIMIT, "wrong"),
        (float("nan"), "wrong"),
        ("CacheStateError: no.", "refused"),
        ("crashed: TypeError: no", "wrong"),
        ("changed", "changed"),
    ],
)
def test_a_cell_is_exact_wrong_refused_or_changed(cell, outcome):
    line = Line(table="recipes", subject="any", cells={"one prompt": cell})
    assert line.outcomes == {"one prompt": outcome}


def test_what_must_be_equal_bit_for_bit_is_wrong_otherwise():
    line = Line(table="recipes", subject="any", cells={"nothing to evict": 1e-9})
    assert line.outcomes == {"nothing to evict": "wrong"}
