"""Builds the site: `make docs`. Sphinx with furo and MyST; see docs/decisions."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import kvpolicy
from kvpolicy import errors

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


def messages() -> dict[str, list[str]]:
    """Return the messages of each kind of error in the sources, with … in the place of values."""
    found: dict[str, set[str]] = {}
    for folder in ("kvpolicy", "kernels", "plugins"):
        for file in (DOCS.parent / folder).rglob("*.py"):
            if not file.is_relative_to(DOCS.parent / "kvpolicy/testing"):
                _collect(ast.parse(file.read_text("utf-8")), found)
    return {name: sorted(texts, key=str.lower) for name, texts in sorted(found.items())}


def _collect(module: ast.Module, found: dict[str, set[str]]) -> None:
    texts = {name: _text(value, {}) for name, value in _assigned(module.body)}
    everywhere = [*_assigned(ast.walk(module))]
    for call in (node for node in ast.walk(module) if isinstance(node, ast.Call) and node.args):
        said, error = call.args[0], getattr(call.func, "id", "")
        if error.endswith("Error") and hasattr(errors, error):
            name = said.id if isinstance(said, ast.Name) else None
            for value in [value for each, value in everywhere if each == name] or [said]:
                text = " ".join(_text(value, texts).split())
                if len(re.findall(r"[a-z]+", text)) > 2:
                    found.setdefault(error, set()).add(text)


def _assigned(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, ast.expr]]:
    """Yield the names to which nodes assign, and what they assign."""
    for node in nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value


def _text(node: ast.expr, texts: dict[str, str]) -> str:
    """Return what an expression for a text says, with the constants of its module in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Name):
        return texts.get(node.id, "…")
    if isinstance(node, ast.JoinedStr):
        parts = (
            each.value if isinstance(each, ast.FormattedValue) else each for each in node.values
        )
        return "".join(_text(each, texts) for each in parts)
    return "…"


def page_of_messages() -> str:
    """Return the page that lists all messages, in reStructuredText."""
    lines = ["Messages", "========", "", MESSAGES, ""]
    for name, texts in messages().items():
        lines += [name, "-" * len(name), "", *(f"- ``{text}``" for text in texts), ""]
    return "\n".join(lines)


MESSAGES = """All messages of errors, by the class of the error. … stands for a value. Each
message says what was wrong, which value was given, and what to do.
:doc:`/guides/troubleshooting` says more about some of them."""


def write_pages(app: Any) -> None:
    """Write a page for each public name, that of all messages, and the page that lists them."""
    folder = DOCS / "api"
    folder.mkdir(exist_ok=True)
    names = sorted(kvpolicy.__all__, key=str.lower)
    for name in names:
        _write(folder / f"{name}.rst", page_of(name))
    _write(folder / "messages.rst", page_of_messages())
    entries = "".join(f"   {name}\n" for name in (*names, "messages"))
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
