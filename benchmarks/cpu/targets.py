"""The targets on a CPU, and the exponents that are computed from rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs

from benchmarks.growth import growth
from benchmarks.rows import Row
from benchmarks.targets import Target

SPEED, MEMORY = "speed of evicting a layer", "extra memory of evicting a layer"
TIME, STEP = "time of evicting a layer", "time of a decode step"
ATTENTION, PROMPT = "speed of decode attention", "peak memory of a prompt"
GROWTH = {"s": "exponent of time over length", "MiB": "exponent of extra memory over length"}


def _both(shape: Mapping[str, int], dtype: str, faster: float) -> list[Target]:
    speed = Target(
        name=SPEED, variant="restkv", against="authors", unit="ratio", shape=shape, dtype=dtype,
        least=faster,
    )  # fmt: skip
    return [speed, attrs.evolve(speed, name=MEMORY, least=None, most=1 / 50)]


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


def with_exponents(rows: Iterable[Row]) -> list[Row]:
    """Return the rows, and rows with the exponents by which time and memory grow with length."""
    found = list(rows)
    template = next((row for row in found if row.benchmark == "cpu.growth"), None)
    for (variant, unit), costs in costs_by_length(found).items():
        if len(costs) > 2 and template is not None:
            exponent = growth(costs).exponent.slope
            found.append(
                attrs.evolve(
                    template, name=GROWTH[unit], variant=variant, value=exponent, unit="exponent"
                )
            )
    return found


def costs_by_length(rows: Iterable[Row]) -> dict[tuple[str, str], dict[int, float]]:
    """Return the seconds and the MiB of each recipe, by length."""
    costs: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if row.benchmark == "cpu.growth" and row.value and row.unit in GROWTH:
            costs.setdefault((row.variant or "", row.unit), {})[row.shape["S"]] = row.value
    return costs
