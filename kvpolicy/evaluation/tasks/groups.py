"""Groups of tasks, which are asked for by one name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

GROUPS: Mapping[str, tuple[str, ...]] = {}
"""The tasks of each group."""


def expanded(names: Iterable[str]) -> list[str]:
    """Return the names of tasks, with each group replaced by its tasks; none twice.

    >>> expanded(["needle", "needle"])
    ['needle']
    """
    return list(dict.fromkeys(task for name in names for task in GROUPS.get(name, (name,))))
