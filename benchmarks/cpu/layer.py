"""Evicting one layer of Llama-3.1-8B's shape: kvpolicy beside what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import torch

import kvpolicy
from benchmarks import authors_restkv, kvpress_snapkv
from benchmarks.one_layer import DIM, HEADS, KV_HEADS, random_layer
from benchmarks.processes import extra_mib
from kvpolicy import Observation

Call = Callable[[], object]


@attrs.frozen(kw_only=True)
class Case:
    """A layer of S positions, W queries and a budget of K."""

    positions: int
    dtype: str
    window: int
    budget: int

    @property
    def shape(self) -> Mapping[str, int]:
        """The sizes by their letters."""
        sizes = {"H": HEADS, "N": KV_HEADS, "D": DIM, "W": self.window}
        return {"S": self.positions, "K": self.budget} | sizes

    def layer(self) -> Observation:
        """Return random queries, keys, values and weights."""
        return random_layer(self.positions, getattr(torch, self.dtype), window=self.window)


def restkv(layer: Observation, budget: int) -> Call:
    """Prepare kvpolicy's ReST-KV."""
    scorer = {"name": "restkv", "window": layer.window}
    policy = kvpolicy.recipe("restkv", scorer=scorer, budget=budget)
    assert layer.output_factors is not None  # once per model
    return lambda: policy.evict(layer)


def snapkv(layer: Observation, budget: int) -> Call:
    """Prepare kvpolicy's SnapKV."""
    scorer = {"name": "snapkv", "window": layer.window}
    policy = kvpolicy.recipe("snapkv", scorer=scorer, budget=budget)
    return lambda: policy.evict(layer)


def authors(layer: Observation, budget: int) -> Call:
    """Prepare the authors' algorithm of ReST-KV; the keys that it repeats are not counted."""
    keys, values = (
        each.repeat_interleave(HEADS // KV_HEADS, dim=1) for each in (layer.keys, layer.values)
    )
    weight = layer.output_weight
    return lambda: authors_restkv.evict(layer.queries, keys, values, weight, budget=budget)


def kvpress(layer: Observation, budget: int) -> Call:
    """Prepare the steps of kvpress' SnapKV."""
    return lambda: kvpress_snapkv.evict(layer.queries, layer.keys, layer.values, budget=budget)


CONTENDERS = {each.__name__: each for each in (restkv, snapkv, authors, kvpress)}


def calls(case: Case, *names: str) -> dict[str, Call]:
    """Prepare several on the same layer."""
    layer = case.layer()
    return {name: CONTENDERS[name](layer, case.budget) for name in names}


@torch.no_grad()
def extra_memory(name: str, case: Case) -> float:
    """Return the MiB that an eviction needs on top of the layer; for a fresh process."""
    # The first eviction loads libraries and starts their threads.
    small = attrs.evolve(case, positions=2 * case.window, budget=case.window + 1)
    calls(small, name)[name]()
    (call,) = calls(case, name).values()
    return extra_mib(call)
