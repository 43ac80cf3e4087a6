"""How large everything is on a CPU: as the targets ask, or a toy that only shows that it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from benchmarks.cpu.cases import Case, Decoder, Narrow
from benchmarks.layers import LayerShape
from benchmarks.memory import in_a_fresh_process


@attrs.frozen(kw_only=True)
class Scale:
    """The sizes of a run."""

    toy: bool
    against_authors: tuple[tuple[Case, int], ...]
    """Layers, and repeats: the authors' algorithm takes up to half a minute."""
    against_kvpress: Case
    long: Case
    lengths: tuple[int, ...]
    """Prompts by whose length costs grow."""
    grown_to: int
    """What those prompts are evicted to."""
    held: int
    dense: int
    decoder: Decoder
    steps: int
    prompt: int
    narrow: Narrow
    repeats: int

    def alone(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in a fresh process; a toy calls it here, to be quick."""
        if self.toy:
            return function(*arguments)
        return in_a_fresh_process(function, *arguments)


def _case(positions: int, dtype: str = "float32", *, window: int = 32) -> Case:
    layer = LayerShape(window=window)
    return Case(layer_shape=layer, positions=positions, dtype=dtype, budget=1024)


def _toy(positions: int, dtype: str = "float32", *, window: int = 8, budget: int = 24) -> Case:
    layer = LayerShape(heads=8, kv_heads=2, dim=32, model_dim=256, window=window)
    return Case(layer_shape=layer, positions=positions, dtype=dtype, budget=budget)


FULL = Scale(
    toy=False,
    against_authors=((_case(4096), 3), (_case(16_384, "bfloat16"), 2)),
    against_kvpress=_case(16_384, window=64),
    long=_case(65_536),
    lengths=tuple(2**power for power in range(10, 17)),
    grown_to=512,
    held=1024,
    dense=32_768,
    decoder=Decoder(),
    steps=200,
    prompt=32_768,
    narrow=Narrow(layers=6),
    repeats=5,
)
TOY = Scale(
    toy=True,
    against_authors=((_toy(160), 1), (_toy(256, "bfloat16"), 1)),
    against_kvpress=_toy(160, window=16),
    long=_toy(320, window=32, budget=48),
    lengths=(64, 128, 256),
    grown_to=48,
    held=32,
    dense=128,
    decoder=Decoder(hidden=64, layers=2, heads=4),
    steps=3,
    prompt=256,
    narrow=Narrow(layers=2, dim=8),
    repeats=1,
)
