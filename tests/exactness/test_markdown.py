"""Text that is escaped is shown by Markdown as it is."""

import re
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpolicy.exactness.markdown import escaped


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("a_b%", "a_b%"),
        ("$x_1$", r"\$x_1\$"),
        (r"\alpha", r"\\alpha"),
        ("a|b", r"a\|b"),
        ("<script>&amp;", "&lt;script&gt;&amp;amp;"),
        ("*a* `b` [c](d)", r"\*a\* \`b\` \[c\](d)"),
        ("two\nlines", "two lines"),
    ],
)
def test_special_characters_are_escaped(text, markdown):
    assert escaped(text) == markdown


@given(st.text())
def test_what_is_escaped_can_be_read_back(text):
    shown = unescape(re.sub(r"\\([\\`*|$\[\]])", r"\1", escaped(text)))
    assert shown == unescape(re.sub("&", "&amp;", text.replace("\n", " ")))


@given(st.text())
def test_no_markup_is_left(text):
    assert not re.search(r"(?<!\\)(\\\\)*[`*|$\[\]]|[<>\n]", escaped(text))
