"""Policies of equal budget that are compared on beds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvpolicy import Policy, compose, recipe
from kvpolicy.discovery.registry import installed
from kvpolicy.evaluation.measures.reconstruction import Recording

Entrant = Callable[[Recording, int], Policy]
"""What makes a policy of a recording, which only an oracle looks at, and a budget in positions."""

BASE = "restkv"
"""The entrant that all others are compared with."""


def _oracle(name: str) -> Entrant:
    return lambda future, budget: compose(
        scorer={"name": name, "future": future}, recent=0, budget=budget
    )


def _recipe(name: str, **options: object) -> Entrant:
    """Return a recipe, with other options of its scorer."""
    if not options:
        return lambda future, budget: recipe(name, budget=budget)
    return lambda future, budget: recipe(name, budget=budget, scorer=options)


def _protecting(name: str, recent: int) -> Entrant:
    """Return a recipe that always keeps the last `recent` tokens."""
    return lambda future, budget: recipe(name, recent=recent, budget=budget)


def _forward(**options: object) -> Entrant:
    """Return forward selection with the other parts of recipe `replay`."""
    scorer = {"name": "forward", **options}
    return lambda future, budget: recipe("replay", scorer=scorer, budget=budget)


def _compacted(name: str, compactor: str, **options: object) -> Entrant:
    """Return a recipe with another compactor."""
    part = {"name": compactor, **options}
    return lambda future, budget: recipe(name, compactor=part, budget=budget)


def _whole_model(future: Recording, budget: int) -> Policy:
    return recipe("replay", allocator="layerdefensivekv", budget=budget)


def _carried(future: Recording, budget: int) -> Policy:
    return recipe("replay", allocator="carried", budget=budget)


FEW: Mapping[str, Entrant] = {
    "oracle": _oracle("oracle"),
    BASE: _recipe(BASE),
    "snapkv": _recipe("snapkv"),
    "expectedattention": _recipe("expectedattention"),
    "replay": _recipe("replay"),
    "replay, no hop": _recipe("replay", hops=0),
    "replay, snapkv asked": _recipe("replay", scorer="snapkv"),
    "forward": _forward(),
}
"""The entrants of docs/results/replay.md."""

RECIPES = tuple(each.name for each in installed("recipe"))
"""The names of all recipes, those of other packages included."""

ENTRANTS: Mapping[str, Entrant] = {
    **FEW,
    **{name: _recipe(name) for name in RECIPES},
    "oracle_single": _oracle("oracle_single"),
    "dapq, spread": _recipe("dapq", content="spread"),
    "dapq, recent 32": _protecting("dapq", 32),
    "snapkv, recent 0": _protecting("snapkv", 0),
    "kvzip, recent 0": _protecting("kvzip", 0),
    "kvzip, recent 32": _protecting("kvzip", 32),
    "replay, whole model": _whole_model,
    "replay, carried": _carried,
    "snapkv, momentkv": _compacted("snapkv", "momentkv"),
    "adakv, momentkv": _compacted("adakv", "momentkv"),
    "replay, momentkv": _compacted("replay", "momentkv"),
    "restkv, attentionmatching": _compacted("restkv", "attentionmatching"),
    "restkv, biases alone": _compacted("restkv", "attentionmatching", values=False),
    "replay, attentionmatching": _compacted("replay", "attentionmatching"),
    "forward, width 1": _forward(width=1),
    "forward, width 5": _forward(width=5),
    "forward, no hop": _forward(hops=0),
    "forward, no hop, width 1": _forward(hops=0, width=1),
    "forward, no hop, width 5": _forward(hops=0, width=5),
}
"""All entrants, by title. `forward` has replayed queries and width 3 unless its title says else."""
