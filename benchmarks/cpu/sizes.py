"""How large everything is: as the targets ask, or toys that show only that everything runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from benchmarks.cpu.decode import Model
from benchmarks.cpu.layer import Case
from benchmarks.cpu.prompts import Narrow
from benchmarks.processes import in_a_fresh_process


@attrs.frozen(kw_only=True)
class Sizes:
    """The sizes of a session."""

    toy: bool
    against_authors: tuple[tuple[Case, int], ...]
    """Layers, and how many rounds: theirs takes up to half a minute."""
    against_kvpress: Case
    long: Case
    lengths: tuple[int, ...]
    grown_to: int
    held: int
    dense: int
    model: Model
    steps: int
    prompt: int
    narrow: Narrow
    rounds: int

    def alone(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run in a fresh process; a toy does without, to be quick."""
        if self.toy:
            return function(*arguments)
        return in_a_fresh_process(function, *arguments)


def _case(positions: int, dtype: str = "float32", *, window: int = 32, budget: int = 1024) -> Case:
    return Case(positions=positions, dtype=dtype, window=window, budget=budget)


FULL = Sizes(
    toy=False,
    against_authors=((_case(4096), 3), (_case(16_384, "bfloat16"), 2)),
    against_kvpress=_case(16_384, window=64),
    long=_case(65_536),
    lengths=tuple(2**power for power in range(10, 17)),
    grown_to=512,
    held=1024,
    dense=32_768,
    model=Model(),
    steps=200,
    prompt=32_768,
    narrow=Narrow(layers=6),
    rounds=5,
)

TOY = Sizes(
    toy=True,
    against_authors=(
        (_case(160, window=8, budget=24), 1),
        (_case(256, "bfloat16", window=8, budget=24), 1),
    ),
    against_kvpress=_case(160, window=16, budget=24),
    long=_case(256, budget=48),
    lengths=(64, 128, 256),
    grown_to=48,
    held=32,
    dense=128,
    model=Model(hidden=64, layers=2, heads=4),
    steps=3,
    prompt=256,
    narrow=Narrow(layers=2, dim=8),
    rounds=1,
)
