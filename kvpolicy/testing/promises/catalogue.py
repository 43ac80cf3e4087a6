"""Every promise, by the kind of component that makes it."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from kvpolicy.testing.promises import (
    allocation,
    compaction,
    division,
    generation,
    patterns,
    recipes,
    scoring,
    selection,
    smoothing,
    storage,
    tasks,
)
from kvpolicy.testing.promises.promise import Promise


def _made_in(*modules: ModuleType) -> tuple[Promise, ...]:
    promises = (value for module in modules for value in vars(module).values())
    return tuple(each for each in promises if isinstance(each, Promise))


PROMISES: Mapping[str, tuple[Promise, ...]] = {
    "scorer": _made_in(scoring),
    "smoother": _made_in(smoothing),
    "allocator": _made_in(allocation),
    "selector": _made_in(selection),
    "compactor": _made_in(compaction),
    "storage": _made_in(storage),
    "prefill_pattern": _made_in(patterns),
    "divider": _made_in(division),
    "recipe": _made_in(recipes, generation),
    "task": _made_in(tasks),
}


def check(kind: str, component: object) -> None:
    """Hold one component to every promise of its kind; for use outside pytest.

    A recipe is given as the mapping of the arguments of `compose`. Raises AssertionError, or what
    the component raises, with a note that names the broken promise.

    >>> from kvpolicy.stages.selection import TopKSelector
    >>> check("selector", TopKSelector())
    """
    for promise in PROMISES[kind]:
        try:
            promise(component)
        except Exception as error:
            error.add_note(f"{kind} {component!r} breaks the promise {promise.name!r}")
            raise
