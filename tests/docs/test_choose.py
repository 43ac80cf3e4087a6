"""What the page on choosing shows of results is what the pages of results say."""

import re
from pathlib import Path

import pytest

import kvpolicy

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "choose.md").read_text("utf-8")
RECIPES = {part.name for part in kvpolicy.installed("recipe")}


def rows(page, heading):
    """Return the cells of the table below a heading, by what its first column names."""
    table = page.partition(heading)[2].strip().partition("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {name.strip("`").replace("the full cache", "full"): cells for name, *cells in lines[1:]}


@pytest.mark.parametrize(
    ("heading", "there", "page"),
    [
        ("| recipe | perplexity (95 % interval) |", "| policy | 64 |", "smollm2-perplexity.md"),
        (
            "| recipe | 64 positions | 128 positions |",
            "| policy | 64 positions | 128 positions |",
            "smollm2-replay.md",
        ),
    ],
)
def test_each_figure_is_that_of_its_page(heading, there, page):
    shown = rows(PAGE, heading)
    found = rows((DOCS / "results" / page).read_text("utf-8"), there)
    assert len(shown) >= 3
    for name, cells in shown.items():
        assert cells == [cell.partition(";")[0] for cell in found[name]], name


def test_every_recipe_to_begin_with_is_installed():
    table = rows(PAGE, "| you have | begin with | because |")
    named = {name for begin, _ in table.values() for name in re.findall(r"`(\w+)`", begin)}
    assert len(named) >= 6
    assert named <= RECIPES
