"""Which lines call for the launches, waits and copies of a recipe, and for which operations."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.waits.counts import KINDS
from benchmarks.waits.forwards import FEW, MANY, Batch, called, cost_of, model_on_gpu

HEADER = ("recipe", "forward", "kind", "layer", "beside", "line", "operation")


def operations(recipe: str, batch: Batch) -> Iterator[list[str]]:
    """Yield a line of the table for each operation that a line of code calls for.

    A line has how often a layer calls for it, and how often a forward does so beside its layers.
    """
    few, many = (called(model_on_gpu(layers), recipe, batch) for layers in (FEW, MANY))
    for phase in few:
        for kind in KINDS:
            of_few, of_many = few[phase][kind], many[phase][kind]
            for place in dict.fromkeys([*of_few, *of_many]):
                cost = cost_of(of_few[place], of_many[place])
                yield [recipe, phase, kind, f"{cost.layer:g}", f"{cost.forward:g}", *place]
