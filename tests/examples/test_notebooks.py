"""The notebooks run from the first cell to the last."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import matplotlib
import pytest

import kvpolicy

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(autouse=True)
def _without_windows():
    before = matplotlib.get_backend()
    matplotlib.use("agg")
    yield
    matplotlib.pyplot.close("all")
    matplotlib.use(before)


def run(cells):
    """Run code cells as a notebook does; return what each shows below itself."""
    names, shown = {"__name__": "__main__"}, []
    for code in cells:
        tree = ast.parse(code)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
            shown.append(value)
    kvpolicy.restore(names["model"])
    return names, shown


def code_of(file):
    cells = json.loads(file.read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_recipes_are_compared():
    names, shown = run(code_of(FOLDER / "compare-recipes.ipynb"))
    cells = {(cell.entrant, cell.budget): cell.estimate.value for cell in names["found"].cells}
    assert cells["full", None] == cells["restkv", 128] == 1.0
    assert cells["random", 40] == 0.0
    assert "<table>" in names["cache"]._repr_html_()
    assert "| restkv |" in names["found"]._repr_markdown_()
    assert any(isinstance(each, matplotlib.figure.Figure) for each in shown)


def test_what_survives_is_shown():
    names, shown = run(code_of(FOLDER / "what-survives.ipynb"))
    assert {name: each.right for name, each in names["inspections"].items()} == {
        "restkv": True,
        "streamingllm": False,
    }
    assert "rgba(255, 140, 0, 1.00)" in shown[0]._repr_html_()
    assert names["found"].cause.verdict == "missing"


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_stored_without_results(file):
    for cell in json.loads(file.read_text("utf-8"))["cells"]:
        assert cell["id"]
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
