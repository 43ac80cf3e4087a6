"""Targets: bounds on rows, and whether the rows meet them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
from rich.table import Table

from benchmarks.rows import Row


@attrs.frozen(kw_only=True)
class Target:
    """A bound on one number. `least` or `most` is given, not both."""

    name: str
    variant: str | None = None
    unit: str
    against: str | None = None
    dtype: str | None = None
    """None: of any dtype."""
    shape: Mapping[str, int] = attrs.field(factory=dict)
    """Sizes that a row must have; it may have others as well."""
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    """Settings that a row must have; it may have others as well."""
    least: float | None = None
    most: float | None = None
    text: str = ""
    """What is bounded, for people; made from the fields above if empty."""
    value: Callable[[Row], float] = lambda row: row.value or 0.0
    """The number of a row that is bounded, if it is not the row's value."""
    value_unit: str | None = None
    """The unit of that number."""

    @property
    def title(self) -> str:
        """What is bounded, for people."""
        sizes = [f"{letter} = {size:,}" for letter, size in self.shape.items()]
        details = ", ".join([*sizes, *([self.dtype] if self.dtype else [])])
        compared = f" against {self.against}" if self.against else ""
        made = f"{self.name}: {self.variant}{compared}" + (f" ({details})" if details else "")
        return self.text or made

    @property
    def bound(self) -> str:
        """The bound, for people."""
        if self.least is not None:
            return f"\N{GREATER-THAN OR EQUAL TO} {self.shown(self.least)}"
        return f"\N{LESS-THAN OR EQUAL TO} {self.shown(self.most or 0.0)}"

    def shown(self, value: float) -> str:
        """Return a value in its unit."""
        return amount(value, self.value_unit or self.unit)

    def picks(self, row: Row) -> bool:
        """Whether the bound is on this row."""
        return (
            (self.name, self.against, self.unit) == (row.name, row.against, row.unit)
            and self.variant in (None, row.variant)
            and self.dtype in (None, row.dtype)
            and self.shape.items() <= row.shape.items()
            and self.settings.items() <= row.settings.items()
        )

    def met(self, value: float) -> bool:
        """Whether a value is within the bound."""
        if self.least is not None:
            return value >= self.least
        return self.most is not None and value <= self.most


@attrs.frozen(kw_only=True)
class Verdict:
    """A target beside the row that answers it; None if no row does."""

    target: Target
    row: Row | None

    @property
    def value(self) -> float | None:
        """The number that is judged; None if there is none."""
        if self.row is None or self.row.value is None:
            return None
        return self.target.value(self.row)

    @property
    def measured(self) -> str:
        """The number, for people."""
        return "" if self.value is None else self.target.shown(self.value)

    @property
    def judgement(self) -> str:
        """Either "met", "missed", "not measured", or why there is no number."""
        if self.value is not None:
            return "met" if self.target.met(self.value) else "missed"
        return "not measured" if self.row is None else self.row.failure or "not measured"


def verdicts(targets: Sequence[Target], rows: Iterable[Row]) -> Iterator[Verdict]:
    """Judge every target: by the last row of each model, or by none."""
    rows = list(rows)
    for target in targets:
        last = {row.settings.get("model"): row for row in rows if target.picks(row)}
        for row in last.values() or [None]:
            yield Verdict(target=target, row=row)


def target_table(title: str, found: Iterable[Verdict]) -> Table:
    """Return all targets with what was measured."""
    table = Table(title=title, title_justify="left")
    for heading in ("what", "target", "measured", ""):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for verdict in found:
        target = verdict.target
        table.add_row(target.title, target.bound, verdict.measured, verdict.judgement)
    return table


def amount(value: float, unit: str) -> str:
    """Write a number in its unit, with as many digits as matter.

    >>> amount(34.26, "ratio"), amount(0.0123, "ratio"), amount(0.00123, "s"), amount(150, "MiB")
    ('34.3x', '0.012x', '1.23 ms', '150 MiB')
    >>> amount(0.0123, "share")
    '1.2 %'
    """
    if unit == "s":
        for name, size in (("s", 1), ("ms", 1e-3), ("\N{GREEK SMALL LETTER MU}s", 1e-6)):
            if value >= size or name.startswith("\N{GREEK SMALL LETTER MU}"):
                break
        return f"{value / size:.3g} {name}"
    if unit == "MiB":
        return f"{value:,.0f} MiB"
    if unit == "share":
        return f"{100 * value:.2g} %"
    digits = f"{value:.3g}" if value >= 0.1 else f"{value:.2g}"
    return f"{digits}x" if unit == "ratio" else digits
