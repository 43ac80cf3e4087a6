"""What is searched: scorers, smoothers, allocators and their options, as arguments of `compose`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from kvpolicy.budget import Budget, plain
from kvpolicy.discovery.registry import installed

VERSION = 1
"""Of the space: a study goes on only if it is the same."""


class Trial(Protocol):
    """What suggests values, as an `optuna.Trial` does."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Return one of `choices`."""

    def suggest_float(self, name: str, low: float, high: float) -> float:
        """Return a number from `low` to `high`."""


Options: TypeAlias = "Callable[[Trial], dict[str, Any]]"


def _window(trial: Trial) -> dict[str, Any]:
    return {"window": trial.suggest_categorical("window", (8, 16, 32, 64))}


def _reconstruction(trial: Trial) -> dict[str, Any]:
    inside = trial.suggest_categorical("o_includes_window", (False, True))
    return {**_window(trial), "o_includes_window": inside}


def _pooling(trial: Trial) -> dict[str, Any]:
    return {
        "pooling": trial.suggest_categorical("pooling", ("avg", "max")),
        "width": trial.suggest_categorical("width", (3, 5, 7, 13)),
    }


def _spatiotemporal(trial: Trial) -> dict[str, Any]:
    pooling = trial.suggest_categorical("spatial", ("none", "avg", "max", "adaptive"))
    width = (
        {} if pooling == "none" else {"width": trial.suggest_categorical("width", (3, 5, 7, 13))}
    )
    return {"alpha": trial.suggest_float("alpha", 0.05, 1.0), "pooling": pooling, **width}


def _adaptive(trial: Trial) -> dict[str, Any]:
    return {"floor": trial.suggest_float("floor", 0.0, 1.0)}


def _replay(trial: Trial) -> dict[str, Any]:
    return {
        "scorer": trial.suggest_categorical("replayed", ("snapkv", "restkv")),
        "hops": trial.suggest_categorical("hops", (1, 2, 3)),
    }


def _pseudo(trial: Trial) -> dict[str, Any]:
    return {
        "scorer": trial.suggest_categorical("pseudo", ("snapkv", "restkv")),
        "tokens": trial.suggest_categorical("tokens", (8, 16, 32, 64)),
        "content": trial.suggest_categorical("content", ("last", "spread")),
    }


def _none(trial: Trial) -> dict[str, Any]:
    return {}


SPACE: Mapping[str, Mapping[str, Options]] = {
    "scorer": {
        "snapkv": _window,
        "restkv": _reconstruction,
        "jointrestkv": _reconstruction,
        "criticalkv": _window,
        "capkv": _none,
        "dapq": _pseudo,
        "expectedattention": _none,
        "knorm": _none,
        "lava": _window,
        "replay": _replay,
        "triattention": _none,
    },
    "smoother": {"mean": _none, "pooling": _pooling, "spatiotemporal": _spatiotemporal},
    "allocator": {
        "uniform": _none,
        "adakv": _adaptive,
        "pyramidkv": _none,
        "layerdefensivekv": _none,
        "kvcompose": _none,
        "lava": _none,
    },
}
"""The parts that take part where they are installed, and the options that are searched of each."""


def suggested(trial: Trial, budget: Budget) -> dict[str, Any]:
    """Return arguments of `compose`; not all of them make a policy."""
    parts = {}
    for kind, choices in SPACE.items():
        known = {part.name for part in installed(kind)}
        name = trial.suggest_categorical(kind, tuple(each for each in choices if each in known))
        parts[kind] = {"name": name, **choices[name](trial)}
    return {
        **parts,
        "group": trial.suggest_categorical("group", ("mean", "max")),
        "recent": trial.suggest_categorical("recent", (4, 8, 16, 32)),
        "sinks": trial.suggest_categorical("sinks", (0, 4)),
        "budget": plain(budget),
    }
