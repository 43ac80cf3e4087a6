"""What is searched: scorers, smoothers, allocators and their options, as arguments of `compose`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import attrs

from kvpolicy.budget import Budget, plain
from kvpolicy.composition import compose, recipe
from kvpolicy.discovery.registry import installed
from kvpolicy.errors import KvpolicyError

VERSION = 2
"""Of the space: a study goes on only if it is the same."""
WIDTHS = (3, 5, 7, 13)
"""Of pooling, in positions."""


class Trial(Protocol):
    """What suggests values, as an `optuna.Trial` does."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Return one of `choices`."""

    def suggest_float(self, name: str, low: float, high: float) -> float:
        """Return a number from `low` to `high`."""


Options: TypeAlias = "Callable[[Trial], dict[str, Any]]"
"""Suggests options of a part. Their names begin with the kind of the part and the option."""


def _window(trial: Trial) -> dict[str, Any]:
    return {"window": trial.suggest_categorical("scorer.window", (8, 16, 32, 64))}


def _reconstruction(trial: Trial) -> dict[str, Any]:
    inside = trial.suggest_categorical("scorer.o_includes_window", (False, True))
    return {**_window(trial), "o_includes_window": inside}


def _pooling(trial: Trial) -> dict[str, Any]:
    return {
        "pooling": trial.suggest_categorical("smoother.pooling.plain", ("avg", "max")),
        "width": trial.suggest_categorical("smoother.width", WIDTHS),
    }


def _spatiotemporal(trial: Trial) -> dict[str, Any]:
    pooling = trial.suggest_categorical("smoother.pooling", ("none", "avg", "max", "adaptive"))
    width = trial.suggest_categorical("smoother.width", WIDTHS)
    alpha = trial.suggest_float("smoother.alpha", 0.05, 1.0)
    return {"alpha": alpha, "pooling": pooling} | ({} if pooling == "none" else {"width": width})


def _adaptive(trial: Trial) -> dict[str, Any]:
    return {"floor": trial.suggest_float("allocator.floor", 0.0, 1.0)}


def _replay(trial: Trial) -> dict[str, Any]:
    return {
        "scorer": trial.suggest_categorical("scorer.scorer", ("snapkv", "restkv")),
        "hops": trial.suggest_categorical("scorer.hops", (1, 2, 3)),
    }


def _pseudo(trial: Trial) -> dict[str, Any]:
    return {
        "scorer": trial.suggest_categorical("scorer.scorer", ("snapkv", "restkv")),
        "tokens": trial.suggest_categorical("scorer.tokens", (8, 16, 32, 64)),
        "content": trial.suggest_categorical("scorer.content", ("last", "spread")),
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
        "recent": trial.suggest_categorical("recent", (0, 4, 8, 16, 32)),
        "sinks": trial.suggest_categorical("sinks", (0, 4)),
        "budget": plain(budget),
    }


@attrs.frozen
class _Found:
    """Suggests what a policy has, as plain data, and notes it in `values`."""

    policy: Mapping[str, Any]
    values: dict[str, Any] = attrs.field(factory=dict)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Return the policy's value. Raises LookupError unless it is one of `choices`."""
        value = self._value(name)
        if value not in choices:
            raise LookupError(name)
        self.values[name] = value
        return value

    def suggest_float(self, name: str, low: float, high: float) -> float:
        """Return the policy's number. Raises LookupError unless it is from `low` to `high`."""
        value = float(self._value(name))
        if not low <= value <= high:
            raise LookupError(name)
        self.values[name] = value
        return value

    def _value(self, name: str) -> Any:
        first, *option = name.split(".")
        if first not in SPACE:
            return self.policy[first]
        return self.policy[first][option[0] if option else "name"]


def beginnings(budget: Budget) -> list[dict[str, Any]]:
    """Return for each installed recipe that the space has the values that suggest it.

    The smallest error of a search that tries them all is at most theirs.
    """
    known = []
    for name in sorted({part.name for part in installed("recipe")}):
        try:
            policy = recipe(name, budget=budget)
            found = _Found(policy.to_dict())
            if compose(**suggested(found, budget)) == policy:
                known.append(found.values)
        except (KvpolicyError, LookupError):
            continue
    return known
