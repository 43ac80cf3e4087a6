"""The tables: which models and policies are measured."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from typing import Any

import attrs
import torch

from kvpolicy import installed
from kvpolicy.errors import KvpolicyError
from kvpolicy.exactness.architectures import model_types, tiny_architecture, variants
from kvpolicy.exactness.cells import Line, measure
from kvpolicy.exactness.media.columns import COLUMNS as MEDIA
from kvpolicy.exactness.media.models import media_types, tiny_media_model
from kvpolicy.exactness.media.prompts import media_of
from kvpolicy.exactness.usages import small_policy
from kvpolicy.testing.models import FAMILIES, tiny_model

Task = Callable[[], Line]
LAYERS = 4
"""The ladder of recipe `lacache` needs several layers."""


def architectures() -> Iterator[Task]:
    """Give every model type of transformers, with ReST-KV."""
    for name in model_types():
        for subject, changes in _variants(name).items():
            yield partial(_architecture, name, subject, changes)


def recipes() -> Iterator[Task]:
    """Give every installed recipe, on one family."""
    for part in installed("recipe"):
        yield partial(_recipe, part.name, {})
        yield partial(_recipe, part.name, {"budget": 0.4})


def attentions() -> Iterator[Task]:
    """Give all families, with transformers' eager attention."""
    for family in FAMILIES:
        yield partial(_family, "attentions", family, "eager", "float32")


def precisions() -> Iterator[Task]:
    """Give all families in half precision, with eager attention."""
    for family in FAMILIES:
        for dtype in ("bfloat16", "float16"):
            yield partial(_family, "precisions", family, "eager", dtype)


def media() -> Iterator[Task]:
    """Give every model type that reads images or sound, with ReST-KV and a recipe of each kind."""
    for name in media_types():
        yield partial(_media, name)


TABLES: dict[str, Callable[[], Iterator[Task]]] = {
    each.__name__: each for each in (architectures, recipes, attentions, precisions, media)
}


def measured(tables: Sequence[str], workers: int) -> Iterator[Line]:
    """Measure tables in their order, several lines at once, each in a process."""
    tasks = [task for table in tables for task in TABLES[table]()]
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
    return task()


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


def _recipe(name: str, changes: dict[str, Any]) -> Line:
    build = partial(tiny_model, "llama", num_hidden_layers=LAYERS)
    subject = name if not changes else f"{name}, 40 % of the prompt"
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


def _family(table: str, family: str, attention: str, dtype: str) -> Line:
    def build() -> Any:
        return tiny_model(family, attn_implementation=attention).to(getattr(torch, dtype))

    return measure(table, f"{family}, {attention}, {dtype}", build, small_policy("restkv"))
