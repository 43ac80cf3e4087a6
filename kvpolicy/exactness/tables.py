"""The tables: which models and policies are measured."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing import get_context
from typing import Any

import attrs
import torch

from kvpolicy import installed, memory_efficient_attention
from kvpolicy.errors import InvalidValueError, KvpolicyError, suggest
from kvpolicy.exactness.architectures import model_types, tiny_architecture, variants
from kvpolicy.exactness.cells import Line, measure
from kvpolicy.exactness.media.columns import COLUMNS as MEDIA
from kvpolicy.exactness.media.models import media_types, tiny_media_model
from kvpolicy.exactness.media.prompts import media_of
from kvpolicy.exactness.usages import small_policy
from kvpolicy.testing.models import FAMILIES, tiny_model

LAYERS = 4
"""The ladder of recipe `lacache` needs several layers."""
MEMORY_EFFICIENT = "memory-efficient"
"""Eager attention within `kvpolicy.memory_efficient_attention`."""
CAPPED = "gemma2"
"""The family that has a soft cap: transformers gives it eager attention only."""


@attrs.frozen
class Task:
    """One line that can be measured: its subject, and what measures it."""

    subject: str
    measure: Callable[[], Line]


def architectures() -> Iterator[Task]:
    """Give every model type of transformers, with ReST-KV."""
    for name in model_types():
        for subject, changes in _variants(name).items():
            yield Task(subject, partial(_architecture, name, subject, changes))


def recipes() -> Iterator[Task]:
    """Give every installed recipe, on one family."""
    for part in installed("recipe"):
        for subject, changes in (
            (part.name, {}),
            (f"{part.name}, 40 % of the prompt", {"budget": 0.4}),
        ):
            yield Task(subject, partial(_recipe, part.name, subject, changes))


def attentions() -> Iterator[Task]:
    """Give all families with transformers' eager attention, and one with memory-efficient one."""
    for family in FAMILIES:
        yield _of_family("attentions", family, "eager", "float32")
    yield _of_family("attentions", CAPPED, MEMORY_EFFICIENT, "float32")


def precisions() -> Iterator[Task]:
    """Give the families in half precision, with the attentions of the table `attentions`."""
    pairs = [(family, "eager") for family in FAMILIES] + [(CAPPED, MEMORY_EFFICIENT)]
    for family, attention in pairs:
        for dtype in ("bfloat16", "float16"):
            yield _of_family("precisions", family, attention, dtype)


def media() -> Iterator[Task]:
    """Give every model type that reads images or sound, with ReST-KV and a recipe of each kind."""
    for name in media_types():
        yield Task(name, partial(_media, name))


TABLES: dict[str, Callable[[], Iterator[Task]]] = {
    each.__name__: each for each in (architectures, recipes, attentions, precisions, media)
}


def chosen(tables: Sequence[str], subjects: Sequence[str] = ()) -> list[Task]:
    """Return the lines of tables in their order: all, or those of these subjects.

    Raises InvalidValueError for a subject that no line of the tables has.
    """
    tasks = [task for table in tables for task in TABLES[table]()]
    known = [task.subject for task in tasks]
    for subject in subjects:
        if subject not in known:
            raise InvalidValueError(
                f"no line of {', '.join(tables)} has the subject {subject!r}."
                f"{suggest(subject, known)} Each line of docs/exactness.md begins with its subject."
            )
    return [task for task in tasks if not subjects or task.subject in subjects]


def measured(tables: Sequence[str], workers: int, subjects: Sequence[str] = ()) -> Iterator[Line]:
    """Measure lines of tables in their order, several at once, each in a process."""
    tasks = chosen(tables, subjects)
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_prepare) as pool:
        yield from pool.map(_run, tasks)


def _prepare() -> None:
    """Silence what transformers says of random tiny models; use one thread, since workers share."""
    import transformers

    warnings.filterwarnings("ignore")
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)


def _run(task: Task) -> Line:
    return task.measure()


def _variants(name: str) -> dict[str, dict[str, Any]]:
    try:
        return variants(name)
    except Exception:  # noqa: BLE001 - to build the type fails later, and its line says why
        return {name: {}}


def _architecture(name: str, subject: str, changes: dict[str, Any]) -> Line:
    """Measure a model type in the first of three ways that works; else in the last.

    sdpa, then eager attention, then eager attention with errors in value space: ReST-KV does not
    know the output projection of every type.
    """
    for attention, projection in (("sdpa", "output"), ("eager", "output"), ("eager", "value")):
        scorer = {"name": "restkv", "window": 8, "projection": projection}
        policy = small_policy("restkv", scorer=scorer)
        build = partial(tiny_architecture, name, attn_implementation=attention, **changes)
        note = attention if projection == "output" else f"{attention}, value space"
        line = attrs.evolve(measure("architectures", subject, build, policy), note=note)
        if line.outcomes.get("one prompt") == "exact":
            break
    return line


def _recipe(name: str, subject: str, changes: dict[str, Any]) -> Line:
    build = partial(tiny_model, "llama", num_hidden_layers=LAYERS)
    return measure("recipes", subject, build, small_policy(name, **changes))


def _media(name: str) -> Line:
    """Measure a type if a prompt with media can be made for it."""

    def build() -> Any:
        model = tiny_media_model(name)
        with suppress(KvpolicyError):
            # A model that is refused needs no prompt.
            small_policy("restkv").cache(model).close()
            media_of(model)
        return model

    return measure("media", name, build, small_policy("restkv"), MEDIA)


def _of_family(table: str, family: str, attention: str, dtype: str) -> Task:
    subject = f"{family}, {attention}, {dtype}"
    return Task(subject, partial(_family, table, subject, family, attention, dtype))


def _family(table: str, subject: str, family: str, attention: str, dtype: str) -> Line:
    with ExitStack() as stack:

        def build() -> Any:
            name = "eager" if attention == MEMORY_EFFICIENT else attention
            model = tiny_model(family, attn_implementation=name).to(getattr(torch, dtype))
            if attention == MEMORY_EFFICIENT:
                stack.enter_context(memory_efficient_attention(model))
            return model

        return measure(table, subject, build, small_policy("restkv"))
