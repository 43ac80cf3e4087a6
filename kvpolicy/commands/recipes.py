"""Reads recipes from text: names and files, or `all`."""

from __future__ import annotations

from kvpolicy.commands.stdout import plugins_print_to_stderr


def read_recipes(text: str) -> list[str]:
    """Read names of recipes and JSON files of policies, with commas in between, or `all`.

    `all` stands for every installed recipe.

    >>> read_recipes("restkv, mine.json"), "snapkv" in read_recipes("all")
    (['restkv', 'mine.json'], True)
    """
    if text.strip() == "all":
        return installed_recipes()
    return [part.strip() for part in text.split(",") if part.strip()]


def installed_recipes() -> list[str]:
    """Return the names of all installed recipes, in alphabetical order."""
    from kvpolicy.discovery.registry import installed

    with plugins_print_to_stderr():
        return sorted({part.name for part in installed("recipe")})
