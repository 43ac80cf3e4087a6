"""Which models and policies are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import attrs
import torch

from benchmarks.exactness.cells import Line, measure, quietly
from kvpolicy import installed
from kvpolicy.exactness.architectures import model_types, tiny_architecture
from kvpolicy.exactness.usages import small_policy
from kvpolicy.testing.models import FAMILIES, tiny_model

Task = Callable[[], Line]
LAYERS = 4
"""Room for a ladder over layers."""


def architectures() -> Iterator[Task]:
    """Every model type that transformers has, under ReST-KV."""
    for name in model_types():
        yield partial(_architecture, name)


def recipes() -> Iterator[Task]:
    """Every installed recipe, on one family."""
    for part in installed("recipe"):
        yield partial(_recipe, part.name, {})
        yield partial(_recipe, part.name, {"budget": 0.4})


def attentions() -> Iterator[Task]:
    """Ten families, with transformers' own eager attention."""
    for family in FAMILIES:
        yield partial(_family, "attentions", family, "eager", "float32")


def precisions() -> Iterator[Task]:
    """Ten families in half precision, eager."""
    for family in FAMILIES:
        for dtype in ("bfloat16", "float16"):
            yield partial(_family, "precisions", family, "eager", dtype)


TABLES: dict[str, Callable[[], Iterator[Task]]] = {
    each.__name__: each for each in (architectures, recipes, attentions, precisions)
}


def measured(tables: list[str], workers: int) -> Iterator[Line]:
    """Measure tables, several lines at once, in their order."""
    tasks = [task for table in tables for task in TABLES[table]()]
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=quietly) as pool:
        yield from pool.map(_run, tasks)


def _run(task: Task) -> Line:
    return task()


def _architecture(name: str) -> Line:
    """Use sdpa where the type has it, and value space where the output projection is not seen."""
    last = None
    for attention, projection in (("sdpa", "output"), ("eager", "output"), ("eager", "value")):
        policy = small_policy("restkv")
        policy = attrs.evolve(policy, scorer=attrs.evolve(policy.scorer, projection=projection))
        build = partial(tiny_architecture, name, attn_implementation=attention)
        line = measure("architectures", name, build, policy)
        note = attention if projection == "output" else f"{attention}, value space"
        last = attrs.evolve(line, note=note)
        if line.outcomes.get("one prompt") == "exact":
            return last
    assert last is not None
    return last


def _recipe(name: str, changes: dict[str, Any]) -> Line:
    build = partial(tiny_model, "llama", num_hidden_layers=LAYERS)
    subject = name if not changes else f"{name}, 40 % of the prompt"
    return measure("recipes", subject, build, small_policy(name, **changes))


def _family(table: str, family: str, attention: str, dtype: str) -> Line:
    def build() -> Any:
        return tiny_model(family, attn_implementation=attention).to(getattr(torch, dtype))

    return measure(table, f"{family}, {attention}, {dtype}", build, small_policy("restkv"))
