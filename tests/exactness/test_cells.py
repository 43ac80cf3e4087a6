"""A cell is exact, wrong, refused or not comparable."""

import pytest

from kvpolicy.errors import CacheStateError
from kvpolicy.exactness import cells
from kvpolicy.exactness.cells import Line, measure
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import small_policy
from kvpolicy.testing.models import tiny_model


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


def raising(error):
    def usage(model, policy):
        raise error

    return usage


@pytest.fixture
def columns(monkeypatch):
    usages = {
        "one prompt": lambda model, policy: 2e-6,
        "after crop": raising(CacheStateError("cannot crop\nand more")),
        "sampling": raising(TypeError("wrong")),
        "saved and loaded": lambda model, policy: 0.0,
    }
    monkeypatch.setattr(cells, "COLUMNS", usages)


def test_a_line_has_differences_refusals_and_crashes(columns):
    line = measure("recipes", "snapkv", tiny_model, small_policy("snapkv"))
    assert line.cells == {
        "one prompt": 2e-6,
        "after crop": "CacheStateError: cannot crop",
        "sampling": "crashed: TypeError: wrong",
        "saved and loaded": 0.0,
    }


def test_a_compactor_that_changes_rows_is_compared_with_itself_alone(columns):
    line = measure("recipes", "think", tiny_model, small_policy("think"))
    assert line.outcomes == {
        "one prompt": "changed",
        "after crop": "changed",
        "sampling": "changed",
        "saved and loaded": "exact",
    }


def test_a_model_that_cannot_be_built_has_a_reason_and_no_cells():
    def build():
        raise OSError("no such type")

    line = measure("architectures", "x", build, small_policy("snapkv"))
    assert line.refused == "transformers cannot build it tiny: OSError: no such type"
    assert line.cells == {}


def test_a_model_without_a_cache_has_a_reason_and_no_cells():
    policy = small_policy("snapkv", allocator={"name": "headkv", "importance": [[1.0]]})
    line = measure("architectures", "llama", tiny_model, policy)
    assert line.refused.startswith("InvalidValueError: ")
    assert line.cells == {}
