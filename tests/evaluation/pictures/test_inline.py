"""A picture inside a page: text is text, colours are the page's, and nothing else is needed."""

from __future__ import annotations

import re

import pytest

from kvpolicy.evaluation.pictures.inline import PAGE, inline
from kvpolicy.evaluation.pictures.marks import marks
from kvpolicy.evaluation.pictures.quality import quality_picture


@pytest.fixture
def svg(cells):
    return inline(quality_picture(cells, marks(["restkv", "snapkv"]), PAGE), "What <it> shows.")


def test_text_is_text(svg):
    texts = re.findall(r"<text [^>]*>([^<]*)</text>", svg)
    assert {"restkv", "snapkv", "full", "64", "budget"} <= set(texts)


def test_colours_of_the_page_are_variables(svg):
    assert "var(--ink)" in svg
    assert "var(--muted)" in svg
    assert "#0102" not in svg


def test_it_says_what_it_shows_and_names_no_address(svg):
    assert svg.startswith("<svg viewBox=")
    assert 'role="img" aria-label="What &lt;it&gt; shows."><title>What &lt;it&gt; shows.<' in svg
    assert "http" not in svg
    assert "font-family" not in svg


def test_two_pictures_have_no_id_of_different_things_in_common(svg, make_cell):
    other = inline(quality_picture([make_cell("h2o", 9, 0.1)], marks(["h2o"]), PAGE), "Other.")
    parts = [
        dict(re.findall(r'<(?:path|clipPath) id="(\w+)"(.*?)(?:/>|</clipPath>)', text))
        for text in (svg, other)
    ]
    assert parts[0]
    assert all(parts[1].get(name, content) == content for name, content in parts[0].items())
