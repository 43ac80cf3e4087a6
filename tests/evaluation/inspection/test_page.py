"""The page of an inspection holds the whole prompt, and needs nothing beside itself."""

from __future__ import annotations

import re
from html import unescape

import pytest

from kvpolicy.evaluation.inspection.page import page, runs


@pytest.fixture(scope="module")
def found(inspected):
    return inspected("adakv")


@pytest.fixture(scope="module")
def html(found):
    return page(found, name="adakv at 40", model="org/<model>")


def test_the_whole_prompt_is_there_and_can_be_selected(found, html):
    text = re.search(r'<div class="text"[^>]*>(.*?)</div>', html, re.DOTALL)[1]
    assert unescape(re.sub(r"<[^>]+>", "", text)) == "".join(found.prompt.pieces)


def test_neighbours_that_are_shaded_alike_are_one_stretch(found):
    stretches = list(runs(found))
    assert len(stretches) < len(found.prompt.pieces)
    assert "".join(each["text"] for each in stretches) == "".join(found.prompt.pieces)
    for each in stretches:
        assert ("gone" in each["names"]) == (each["share"] == 0)


def test_needed_tokens_are_outlined(found, html):
    [place] = found.needed
    marked = re.findall(r'class="[^"]*needed"[^>]*>([^<]*)<', html)
    words = "".join(found.prompt.pieces[position] for position in place)
    assert "".join(marked[1:]) == words, "the first is the key"


def test_budgets_of_heads_are_those_of_the_cache(found, html):
    table = html.partition('aria-label="Positions held, by layer and head"')[2]
    shown = [int(each) for each in re.findall(r'<td style="[^"]*">(\d+)</td>', table)]
    assert shown == [int(row.sum()) for layer in found.held for row in layer]


def test_retention_by_layer_and_position_is_the_mean_of_heads(found, html):
    table = re.search(r'aria-label="Share of positions.*?</table>', html, re.DOTALL)[0]
    shown = [int(each) for each in re.findall(r'<td style="[^"]*">(\d+)</td>', table)]
    assert shown[:16] == [
        round(float(100 * part.mean())) for part in found.held[0].float().mean(0).split(16)
    ]


def test_names_are_text_and_no_address_is_asked_for(html):
    assert "org/&lt;model&gt;" in html
    assert not re.search(r"https?:|src=|<link|<script|@import|url\(", html)


def test_why_is_said(html):
    assert "Why the answer is wrong" in html
    assert "Needed tokens are missing." in html
