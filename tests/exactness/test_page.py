"""The committed page is made from the committed rows, and no cell of theirs is wrong or missing."""

from pathlib import Path

import attrs
import pytest

from kvpolicy.exactness.architectures import model_types
from kvpolicy.exactness.cells import COLUMNS, Line
from kvpolicy.exactness.media.columns import COLUMNS as MEDIA
from kvpolicy.exactness.page import counts, read, rendered, write

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def lines():
    return read(DOCS / "results" / "exactness.jsonl")


def test_the_committed_page_is_made_from_the_committed_rows(lines):
    assert (DOCS / "exactness.md").read_text() == rendered(lines)


def test_no_cell_is_wrong_or_missing(lines):
    assert counts(lines)["wrong"] == 0
    for line in lines:
        columns = MEDIA if line.table == "media" else COLUMNS
        assert line.refused is not None or list(line.cells) == list(columns)


def test_every_model_type_has_a_line(lines):
    measured = [line.subject for line in lines if line.table == "architectures"]
    assert len(measured) > 150
    # Another version of transformers has other model types.
    assert len(set(measured) ^ set(model_types())) <= 20


def test_at_least_forty_model_types_are_served(lines):
    served = [line for line in lines if line.table == "architectures" and line.refused is None]
    assert sum(line.outcomes["one prompt"] == "exact" for line in served) >= 40


def test_lines_are_read_as_they_were_written(tmp_path):
    line = Line(table="recipes", subject="h2o", cells={"one prompt": 1e-6, "sampling": "no: no"})
    refused = Line(table="architectures", subject="mamba", refused="UnsupportedModelError: no.")
    write([line, refused], tmp_path / "rows.jsonl")
    assert read(tmp_path / "rows.jsonl") == [line, refused]


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        (0.0, "| h2o | 0 |"),
        (2e-6, "| h2o | 2e-6 |"),
        (2e-4, "| h2o | **2e-4** |"),
        ("CacheStateError: no.", "| h2o | - |"),
        ("changed", "| h2o | ~ |"),
        ("crashed: TypeError: no", "| h2o | **crashed** |"),
    ],
)
def test_a_cell_shows_its_outcome(cell, shown):
    line = Line(table="recipes", subject="h2o", cells={"one prompt": cell})
    assert shown in rendered([line])


def test_a_reason_is_given_once_with_its_usages():
    line = Line(
        table="recipes", subject="h2o", cells={"five turns": "E: no.", "sampling": "E: no."}
    )
    lines = [line, attrs.evolve(line, subject="tova", cells={"five turns": 0.0, "sampling": 0.0})]
    assert "- *five turns*, *sampling*, h2o: E: no." in rendered(lines)


def test_what_a_line_says_is_plain_text():
    line = Line(table="recipes", subject="a|b $x_1$", cells={"sampling": "E: <script>|no."})
    refused = Line(table="architectures", subject="<b>", refused="a|b {recipes}")
    page = rendered([line, refused])
    assert r"| a\|b \$x_1\$ | - |" in page
    assert r"- *sampling*, all others: E: &lt;script&gt;\|no." in page
    assert r"| &lt;b&gt; | a\|b {recipes} |" in page
