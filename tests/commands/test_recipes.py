"""Recipes are read from text: names and files, or all that are installed."""

from __future__ import annotations

import kvpolicy
from kvpolicy.commands.recipes import read_recipes


def test_names_and_files_are_told_apart_by_commas():
    assert read_recipes(" restkv, mine.json,,snapkv ") == ["restkv", "mine.json", "snapkv"]
    assert read_recipes(" , ") == []


def test_all_is_every_installed_recipe_once(install_plugin):
    install_plugin(
        "latest",
        """
        from kvpolicy import hookimpl

        @hookimpl
        def kvpolicy_recipes():
            return {"latest": {"scorer": "streamingllm"}}
        """,
    )
    assert read_recipes("all") == sorted(part.name for part in kvpolicy.installed("recipe"))
    assert {"latest", "restkv"} <= set(read_recipes("all"))
