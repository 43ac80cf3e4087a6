"""Builds the site: `make docs`. Sphinx with furo and MyST; see docs/decisions."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import kvpolicy

SOURCE = "https://github.com/kvpolicy/kvpolicy/blob/main/"
DOCS = Path(__file__).parent

project = "kvpolicy"
copyright = "the kvpolicy authors"  # noqa: A001 - Sphinx calls it so
release = kvpolicy.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
suppress_warnings = ["misc.highlighting_failure", "myst.header"]  # tables that commands write

html_theme = "furo"
html_title = f"kvpolicy {release}"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}


def page_of(name: str) -> str:
    """Return the page of a public name, in reStructuredText."""
    found = getattr(kvpolicy, name)
    title = f"kvpolicy.{name}"
    module = getattr(found, "__module__", "kvpolicy")
    head = f"{title}\n{'=' * len(title)}\n\n.. currentmodule:: {module}\n\n"
    if inspect.isclass(found):
        return f"{head}.. autoclass:: {found.__name__}\n   :members:\n"
    if inspect.isfunction(found):
        return f"{head}.. autofunction:: {found.__name__}\n"
    return f"{head}{DATA[name]}\n"


DATA = {
    "SAVED": "The metadata of a field of a stored form that `kvpolicy.save` writes to a file.",
    "Reduce": "Folds the rows of an observation window: (..., W, S) to (..., S). A scorer is given "
    "one, and decides where in its formula it applies it.",
    "__version__": "The version of the installed distribution, a string.",
    "hookimpl": "Marks a function of a plugin as a hook; see :doc:`/hooks`.",
}
"""What stands on the pages of names that are neither classes nor functions."""


def write_pages(app: Any) -> None:
    """Write a page for each public name, and the page that lists them."""
    folder = DOCS / "api"
    folder.mkdir(exist_ok=True)
    names = sorted(kvpolicy.__all__, key=str.lower)
    for name in names:
        _write(folder / f"{name}.rst", page_of(name))
    entries = "".join(f"   {name}\n" for name in names)
    _write(
        folder / "index.rst", f"Reference\n=========\n\n.. toctree::\n   :maxdepth: 1\n\n{entries}"
    )


def _write(file: Path, text: str) -> None:
    if not file.exists() or file.read_text() != text:
        file.write_text(text)


def link_to_source(app: Any, name: str, source: list[str]) -> None:
    """Let links to files outside of docs lead to the repository."""
    depth = name.count("/") + 1
    up = "../" * depth
    source[0] = re.sub(rf"\]\({re.escape(up)}([^)]+)\)", rf"]({SOURCE}\1)", source[0])


def setup(app: Any) -> None:
    """Connect what is above."""
    app.connect("builder-inited", write_pages)
    app.connect("source-read", link_to_source)
