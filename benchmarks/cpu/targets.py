"""What the rows are to show, and whether they do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import attrs
from rich.table import Table

from benchmarks.cpu.growth import growth
from benchmarks.rows import Row


@attrs.frozen(kw_only=True)
class Target:
    """A bound on one number; `shape` and `dtype` tell rows of the same name apart."""

    name: str
    variant: str
    unit: str
    against: str | None = None
    shape: Mapping[str, int] = attrs.field(factory=dict)
    dtype: str | None = None
    least: float | None = None
    most: float | None = None

    @property
    def title(self) -> str:
        """What the bound is on, for people."""
        sizes = [f"{letter} = {size:,}" for letter, size in self.shape.items()]
        details = ", ".join([*sizes, *([self.dtype] if self.dtype else [])])
        compared = f" against {self.against}" if self.against else ""
        return f"{self.name}: {self.variant}{compared}" + (f" ({details})" if details else "")

    @property
    def bound(self) -> str:
        """The bound, for people."""
        if self.least is not None:
            return f"\N{GREATER-THAN OR EQUAL TO} {amount(self.least, self.unit)}"
        return f"\N{LESS-THAN OR EQUAL TO} {amount(self.most or 0.0, self.unit)}"

    def among(self, rows: Iterable[Row]) -> Row | None:
        """Return the last row that the bound is on."""
        found = [row for row in rows if self._is_of(row)]
        return found[-1] if found else None

    def _is_of(self, row: Row) -> bool:
        mine = (self.name, self.variant, self.against, self.unit)
        return (
            mine == (row.name, row.variant, row.against, row.unit)
            and (self.dtype is None or self.dtype == row.dtype)
            and self.shape.items() <= row.shape.items()
        )

    def met(self, value: float) -> bool:
        """Whether a value is within the bound."""
        if self.least is not None:
            return value >= self.least
        return self.most is not None and value <= self.most


SPEED, MEMORY = "speed of evicting a layer", "extra memory of evicting a layer"
TIME, STEP = "time of evicting a layer", "time of a decode step"
ATTENTION, PROMPT = "speed of decode attention", "peak memory of a prompt"
GROWTH = {"s": "exponent of time over length", "MiB": "exponent of extra memory over length"}


def _both(shape: Mapping[str, int], dtype: str, faster: float) -> list[Target]:
    ours = {"variant": "restkv", "against": "authors", "unit": "ratio"}
    return [
        Target(name=SPEED, shape=shape, dtype=dtype, least=faster, **ours),
        Target(name=MEMORY, shape=shape, dtype=dtype, most=1 / 50, **ours),
    ]


TARGETS: Sequence[Target] = (
    *_both({"S": 4096}, "float32", 25),
    *_both({"S": 16_384}, "bfloat16", 50),
    Target(name=TIME, variant="restkv", unit="s", shape={"S": 65_536}, most=2.5),
    Target(name=MEMORY, variant="restkv", unit="MiB", shape={"S": 65_536}, most=150),
    Target(
        name=SPEED, variant="snapkv", against="kvpress", unit="ratio", shape={"S": 16_384}, least=1
    ),
    Target(
        name=MEMORY, variant="snapkv", against="kvpress", unit="ratio", shape={"S": 16_384}, most=1
    ),
    *(
        Target(
            name=ATTENTION, variant="1,024 held, one layer", against="32,768 held",
            unit="ratio", dtype=dtype, least=30,
        )
        for dtype in ("float32", "bfloat16")
    ),
    *(
        Target(name=STEP, variant=variant, against=against, unit="ratio", most=1.05)
        for variant in ("snapkv", "snapkv, no groups")
        for against in ("DynamicCache", "StaticCache")
    ),
    Target(name=STEP, variant="uneven heads", against="even heads", unit="ratio", most=1.3),
    *(
        Target(name=name, variant=variant, unit="exponent", most=1.1)
        for name in GROWTH.values()
        for variant in ("restkv", "snapkv")
    ),
)  # fmt: skip


def with_exponents(rows: Sequence[Row]) -> list[Row]:
    """Add how time and memory grow with the length, from what was measured at each."""
    found = list(rows)
    for (variant, unit), costs in costs_by_length(rows).items():
        if len(costs) > 2:
            exponent = growth(costs).exponent.slope
            template = next(row for row in rows if row.benchmark == "cpu.growth")
            found.append(
                attrs.evolve(
                    template, name=GROWTH[unit], variant=variant, value=exponent, unit="exponent"
                )
            )
    return found


def costs_by_length(rows: Iterable[Row]) -> dict[tuple[str, str], dict[int, float]]:
    """Return the seconds and the MiB of every recipe by length."""
    costs: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if row.benchmark == "cpu.growth" and row.value and row.unit in GROWTH:
            costs.setdefault((row.variant or "", row.unit), {})[row.shape["S"]] = row.value
    return costs


def judged(rows: Sequence[Row]) -> Iterator[tuple[Target, Row | None, str]]:
    """Give every target, the row that answers it, and "met", "missed" or why there is no answer."""
    rows = with_exponents(rows)
    for target in TARGETS:
        row = target.among(rows)
        if row is None or row.value is None:
            yield target, row, "not measured"
        else:
            yield target, row, "met" if target.met(row.value) else "missed"


def target_table(rows: Sequence[Row]) -> Table:
    """Return all targets with what was measured."""
    table = Table(title="CPU targets", title_justify="left")
    for heading in ("what", "target", "measured", ""):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for target, row, judgement in judged(rows):
        value = "" if row is None or row.value is None else amount(row.value, row.unit)
        table.add_row(target.title, target.bound, value, judgement)
    return table


def amount(value: float, unit: str) -> str:
    """Write a number in its unit, with as many digits as say something.

    >>> amount(34.26, "ratio"), amount(0.0123, "ratio"), amount(0.00123, "s"), amount(150, "MiB")
    ('34.3x', '0.012x', '1.23 ms', '150 MiB')
    """
    if unit == "s":
        for name, size in (("s", 1), ("ms", 1e-3), ("\N{GREEK SMALL LETTER MU}s", 1e-6)):
            if value >= size or name.startswith("\N{GREEK SMALL LETTER MU}"):
                break
        return f"{value / size:.3g} {name}"
    if unit == "MiB":
        return f"{value:,.0f} MiB"
    digits = f"{value:.3g}" if value >= 0.1 else f"{value:.2g}"
    return f"{digits}x" if unit == "ratio" else digits
