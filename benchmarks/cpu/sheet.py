"""Collects rows, and tells no speed of an operation whose check is red."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from benchmarks.cpu.timing import Times
from benchmarks.rows import Row, machine, versions


class Sheet:
    """The rows of one session."""

    def __init__(self) -> None:
        """Start empty."""
        self.rows: list[Row] = []
        self._verdicts: dict[str, str | None] = {}

    def require(self, benchmark: str, name: str, check: Callable[..., None], *given: Any) -> None:
        """Run an operation's check, once; if it is red, say so in a row and stop the test."""
        key = " ".join([check.__name__, *map(str, given)])
        if key not in self._verdicts:
            self._verdicts[key] = verdict(check, *given)
        if reason := self._verdicts[key]:
            self.note(benchmark, name, None, "bool", variant=key, failure=f"red: {reason}")
            pytest.fail(f"no speed is told, because {key} is red: {reason}", pytrace=False)

    def note(
        self,
        benchmark: str,
        name: str,
        value: Times | float | None,
        unit: str,
        *,
        shape: Mapping[str, int] | None = None,
        **fields: Any,
    ) -> None:
        """Add a row; of times the fastest is the value, since what is slower is the machine's."""
        if isinstance(value, Times):
            fields |= {
                "repeats": len(value.seconds),
                "min_seconds": value.min,
                "median_seconds": value.median,
            }
            value = value.min
        row = Row(
            benchmark=benchmark,
            name=name,
            value=value,
            unit=unit,
            device="cpu",
            machine=machine(),
            versions=versions(),
            shape=shape or {},
            **fields,
        )
        self.rows.append(row)


def verdict(check: Callable[..., None], *given: Any) -> str | None:
    """Return why a check is red; None if it is green."""
    try:
        check(*given)
    except Exception as error:  # noqa: BLE001 - whatever it is, the operation is not to be trusted
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None
