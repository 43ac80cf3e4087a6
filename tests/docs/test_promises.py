"""Every promise of docs/promises.md names a test that exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.findall(r"`(tests/[\w/.]+\.py)(?:::(\w+))?`", (ROOT / "docs/promises.md").read_text())


@pytest.mark.parametrize(("file", "name"), NAMED, ids=lambda each: each)
def test_the_test_is_there(file, name):
    defined = {
        each.name
        for each in ast.walk(ast.parse((ROOT / file).read_text("utf-8")))
        if isinstance(each, ast.FunctionDef) and each.name.startswith("test_")
    }
    assert name in defined if name else defined


def test_every_row_names_one():
    rows = [
        line
        for line in (ROOT / "docs/promises.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| Promise")
    ]
    assert len(rows) == len(NAMED)
