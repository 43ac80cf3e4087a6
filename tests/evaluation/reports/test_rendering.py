"""Templates are filled with text."""

from __future__ import annotations

import pytest
from jinja2 import TemplateNotFound, UndefinedError

from kvpolicy.evaluation.reports.rendering import rendered


def test_a_name_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError):
        rendered("report.html")


def test_an_unknown_page_is_an_error():
    with pytest.raises(TemplateNotFound):
        rendered("nothing.html")
