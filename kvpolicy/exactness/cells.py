"""The cells of the tables: how each usage of one model under one policy came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from kvpolicy import Policy
from kvpolicy.errors import KvpolicyError
from kvpolicy.exactness.limits import LIMIT, limit_of
from kvpolicy.exactness.usages import AGAINST_ITSELF, BITWISE, MODES, USAGES, WAYS, Usage
from kvpolicy.pipeline.capabilities import is_averaging
from kvpolicy.stages.compaction import GatherCompactor

COLUMNS = USAGES | MODES | WAYS
CHANGED = "changed"
"""The cell of a usage that cannot be compared, since the compactor changes keys or values."""
CRASHED = "crashed"
"""How the cell of a usage begins that raised something else than a KvpolicyError."""


@attrs.frozen(kw_only=True)
class Line:
    """One line of a table: all usages of one model under one policy.

    A cell is the largest difference, or the sentence that refuses the usage.

    >>> line = Line(table="recipes", subject="h2o", cells={"one prompt": 2e-6})
    >>> line.outcomes
    {'one prompt': 'exact'}
    """

    table: str
    subject: str
    cells: Mapping[str, float | str] = attrs.field(factory=dict)
    limit: float = LIMIT
    note: str = ""
    refused: str | None = None
    """Why there is no cache for this model at all."""

    @property
    def outcomes(self) -> dict[str, str]:
        """Return for each usage "exact", "wrong", "refused" or "changed" (not comparable)."""
        return {usage: self._outcome(usage, cell) for usage, cell in self.cells.items()}

    def _outcome(self, usage: str, cell: float | str) -> str:
        if isinstance(cell, str):
            known = {CHANGED: "changed", CRASHED: "wrong"}
            return known.get(cell.partition(":")[0], "refused")
        # A NaN is not at most the limit, and so is wrong.
        return "exact" if cell <= (0 if usage in BITWISE else self.limit) else "wrong"


def measure(
    table: str,
    subject: str,
    build: Callable[[], Any],
    policy: Policy,
    columns: Mapping[str, Usage] | None = None,
) -> Line:
    """Measure usages of one model: all, or other `columns`."""
    try:
        model = build()
    except Exception as error:  # noqa: BLE001 - whatever transformers raises is reported
        reason = f"transformers cannot build it tiny: {_sentence(error)}"
        return Line(table=table, subject=subject, refused=reason)
    try:
        policy.cache(model)
    except KvpolicyError as error:
        return Line(table=table, subject=subject, refused=_sentence(error))
    usages = COLUMNS if columns is None else columns
    cells = {name: _cell(name, usage, model, policy) for name, usage in usages.items()}
    return Line(table=table, subject=subject, cells=cells, limit=limit_of(model))


def _cell(name: str, usage: Usage, model: Any, policy: Policy) -> float | str:
    comparable = isinstance(policy.compactor, GatherCompactor) or is_averaging(policy.compactor)
    if not comparable and name not in AGAINST_ITSELF | set(MODES):
        return CHANGED
    try:
        return usage(model, policy)
    except KvpolicyError as error:
        return _sentence(error)
    except Exception as error:  # noqa: BLE001 - any other error makes the cell wrong
        return f"{CRASHED}: {_sentence(error)}"


def _sentence(error: Exception) -> str:
    first = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first[0]}"
