"""Layers that wait for one another, so that an allocator can compare them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from kvpolicy.cache.eviction.budgets import Budgets, budgets_of_layers
from kvpolicy.cache.eviction.ranked import Ranked
from kvpolicy.pipeline.pipeline import Pipeline


class Waiting(NamedTuple):
    """One ranked layer, and how it is told its budgets."""

    groups: Sequence[Ranked]
    keep: Callable[[Sequence[Ranked], Sequence[Budgets]], None]


class Together:
    """Collects ranked layers; the last one lets the policy share out the budget of all."""

    def __init__(self, pipeline: Pipeline, num_layers: int) -> None:
        """Wait for `num_layers` layers."""
        self._pipeline = pipeline
        self._num_layers = num_layers
        self._waiting: dict[int, Waiting] = {}

    def add(self, layer: int, waiting: Waiting) -> None:
        """Collect layer number `layer`; when none is missing, every layer keeps its share."""
        self._waiting[layer] = waiting
        if len(self._waiting) < self._num_layers:
            return
        layers, self._waiting = [each for _, each in sorted(self._waiting.items())], {}
        groups = _alike([each.groups for each in layers])
        rows = zip(*groups, strict=True)
        budgets = [budgets_of_layers(self._pipeline, of_rows) for of_rows in rows]
        for each, own, of_layer in zip(layers, groups, zip(*budgets, strict=True), strict=True):
            each.keep(own, of_layer)

    def waits_for(self, layer: int) -> bool:
        """Whether a layer is to be evicted later, when all have been ranked."""
        return layer in self._waiting

    def clear(self) -> None:
        """Forget the layers that wait."""
        self._waiting.clear()


def _alike(layers: Sequence[Sequence[Ranked]]) -> Sequence[Sequence[Ranked]]:
    """Return the groups of all layers; each row by itself if layers group rows differently."""
    if all(_rows(groups) == _rows(layers[0]) for groups in layers):
        return layers
    return [[row for group in groups for row in group.by_row()] for groups in layers]


def _rows(groups: Sequence[Ranked]) -> list[slice]:
    return [group.rows for group in groups]
