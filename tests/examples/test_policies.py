"""The policies beside the recipes differ from ReST-KV as their names say."""

from __future__ import annotations

from pathlib import Path

import pytest

import kvpolicy
from kvpolicy.evaluation.runs.entrant import read_policy

FOLDER = Path(__file__).parents[2] / "examples" / "policies"
DIFFERENCES = {
    "restkv-mean": {"averaging": "mean"},
    "restkv-last": {"averaging": "none"},
    "restkv-fixed": {"pooling": "avg"},
    "restkv-unpooled": {"pooling": "none"},
    "restkv-plain": {"averaging": "mean", "pooling": "avg"},
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_variant_of_restkv_has_another_smoother_and_nothing_else(name):
    expected = kvpolicy.recipe("restkv", smoother=DIFFERENCES[name], budget=128)
    assert read_policy(FOLDER / f"{name}.json") == expected


def test_snapkv_is_smoothed_as_restkv_is():
    found = read_policy(FOLDER / "snapkv-smoothed.json")
    assert found == kvpolicy.recipe("restkv", scorer="snapkv", budget=128)


def test_each_file_is_tested():
    assert {each.stem for each in FOLDER.iterdir()} == {*DIFFERENCES, "snapkv-smoothed"}
