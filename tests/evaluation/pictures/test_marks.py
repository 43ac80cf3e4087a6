"""Recipes are told apart by shape and kind of line, not by colour alone."""

from __future__ import annotations

import kvpolicy
from kvpolicy.evaluation.pictures.marks import FULL_MARK, marks


def test_all_installed_recipes_differ_without_their_colours():
    names = {part.name for part in kvpolicy.installed("recipe")}
    found = marks(names)
    assert len(names) >= 22
    assert len({(mark.shape, mark.line) for mark in found.values()}) == len(names) + 1


def test_the_full_cache_has_a_mark_of_its_own():
    assert marks(["full", "restkv"])["full"] == marks([])["full"] == FULL_MARK
    assert FULL_MARK.hue is None
