"""The pictures and the page show every policy and need nothing beside themselves."""

from __future__ import annotations

import re
from base64 import b64decode
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from kvpolicy.evaluation.demo.page import page
from kvpolicy.evaluation.pictures import accuracy_picture, save_picture, survival_picture, svg
from kvpolicy.evaluation.pictures.accuracy import LABEL_GAP, TOP
from kvpolicy.evaluation.pictures.labels import apart
from kvpolicy.evaluation.pictures.theme import DARK, LIGHT


@pytest.fixture(scope="module")
def html(comparison, specimen):
    return page(comparison, specimen, command="kvpolicy demo --seed 0")


def texts(figure):
    return {text.get_text() for axes in figure.axes for text in axes.texts}


def test_every_line_and_every_strip_is_named(comparison, specimen):
    names = {"full cache", "restkv", "streamingllm"}
    assert texts(accuracy_picture(comparison)) == names
    assert texts(survival_picture(specimen)) >= names | {"the answer", "all facts"}


def test_many_recipes_become_a_grid_that_names_them_all(made_up):
    many = {f"recipe{number}": {10: number % 5, 20: 4} for number in range(12)}
    drawn = accuracy_picture(made_up(20, **many))

    [axes] = drawn.axes
    named = [label.get_text() for label in axes.get_yticklabels()]
    assert sorted(named) == sorted(many)
    assert named[0] in ("recipe4", "recipe9"), "the best comes first"
    assert len(axes.texts) == 24


def test_a_single_budget_can_be_drawn(made_up):
    assert svg(accuracy_picture(made_up(20, a={10: 4}, b={10: 4})))


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_the_ground_is_that_of_the_theme(comparison, theme):
    assert theme.ground in svg(accuracy_picture(comparison, theme))


@pytest.mark.parametrize("heights", [[0.0, 0.0, 0.0], [0.2, 0.9, 1.0, 1.0, 1.0], [0.5]])
def test_labels_never_overlap_nor_leave_the_picture(heights):
    moved = apart(heights, gap=LABEL_GAP, top=TOP)
    gaps = [above - below for below, above in pairwise(moved)]
    assert all(gap >= LABEL_GAP - 1e-9 for gap in gaps)
    assert max(moved) <= TOP


def test_both_pictures_go_into_one_file(tmp_path, comparison, specimen):
    save_picture(tmp_path / "both.png", comparison, specimen)
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_asks_the_network_for_nothing(html):
    addresses = re.findall(r'(?:src|srcset|href)="([^"]*)"', html)
    assert len(addresses) == 4
    for address in addresses:
        head, data = address.split(",")
        assert head == "data:image/svg+xml;base64"
        assert b64decode(data).lstrip().startswith(b"<?xml")
    assert "url(" not in html
    assert "@import" not in html
    assert "<script" not in html


def test_every_tag_of_the_page_is_closed(html):
    class Tags(HTMLParser):
        CDATA_CONTENT_ELEMENTS = ("style",)
        open_tags: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attributes):
            if tag not in {"meta", "img", "input", "source"}:
                self.open_tags.append(tag)

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

    Tags().feed(html)
    assert Tags.open_tags == []


def test_the_page_shows_the_prompt_and_marks_the_answer(html, questions):
    assert html.count("&lt;s&gt;") == 3
    marked = re.findall(r'<span class="(?:gone )?asked"[^>]*>(\w+)</span>', html)
    assert marked == 3 * questions[0].answer.split()


def test_the_page_says_how_it_was_made_and_who_refused(html):
    assert "kvpolicy demo --seed 0" in html
    assert "refused by restkv at 16" in html
