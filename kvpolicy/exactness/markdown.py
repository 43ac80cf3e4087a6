"""Escapes text for pages in Markdown."""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"[\\`*|$\[\]]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def escaped(text: str) -> str:
    r"""Return text that Markdown shows as it is, in one line: no markup, no HTML, no formula.

    >>> print(escaped("a|b $x_1$ <script>"))
    a\|b \$x_1\$ &lt;script&gt;
    """
    line = " ".join(text.split("\n"))
    return re.sub("[&<>]", lambda found: _ENTITIES[found[0]], _SPECIAL.sub(r"\\\g<0>", line))
