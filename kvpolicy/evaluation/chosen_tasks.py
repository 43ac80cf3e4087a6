"""The tasks of an evaluation: a user's own data, and tasks by name, with their samples."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from kvpolicy.errors import DataError, InvalidValueError, shown
from kvpolicy.evaluation.measures.catalogue import metric_named
from kvpolicy.evaluation.runs.grid import Named
from kvpolicy.evaluation.tasks.own import Data, OwnTask, default_metric, read_samples
from kvpolicy.named import Part, resolved
from kvpolicy.task import Judge, Metric, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def own(
    data: Data | None, metric: str | Judge | Metric | None, limit: int | None
) -> list[tuple[str, Task]]:
    """Return the task of a user's own data, under the name of its file; none without data.

    Raises DataError for data that are malformed, and InvalidValueError for a metric that is none.
    """
    if data is None:
        if metric is not None:
            raise InvalidValueError("metric is for data; tasks have metrics of their own.")
        return []
    samples = read_samples(data, limit=limit)
    task = OwnTask(rows=samples, metric=_metric(metric or default_metric(samples)))
    name = Path(data).stem if isinstance(data, str | os.PathLike) else "data"
    return [(name, task)]


def _metric(given: str | Judge | Metric) -> Metric:
    if isinstance(given, Metric):
        return given
    if isinstance(given, str):
        return metric_named(given)
    if callable(given):
        name = f"{getattr(given, '__module__', '')}:{getattr(given, '__qualname__', given)}"
        return Metric(name=name, judge=given)
    raise InvalidValueError(
        "a metric is a name, a function of the text and the sample, or a Metric, not "
        f"{shown(given)}."
    )


def named(given: Part[Task]) -> tuple[str, Task]:
    """Return a task and its name, which says its options.

    >>> named({"name": "needle", "facts": 4})[0]
    'needle(facts=4)'

    Raises UnknownComponentError or InvalidOptionError, and DataError if its folder is not there.
    """
    task, title = resolved("task", given)
    name = title.name or type(task).__name__
    _check_folder(task, name)
    if isinstance(given, Mapping):
        options = [f"{option}={value}" for option, value in given.items() if option != "name"]
        name = f"{name}({', '.join(options)})" if options else name
    return name, task


def _check_folder(task: Task, name: str) -> None:
    """Raise DataError for a task whose folder is not there, before a model is loaded."""
    folder = getattr(task, "folder", None)
    if isinstance(folder, str) and not Path(folder).exists():
        raise DataError(
            f"the folder {shown(folder)} of task {name!r} does not exist. Give the "
            "folder that holds its files, or leave the option out to take them from the hub."
        )


def with_samples(
    given: tuple[str, Task], tokenizer: PreTrainedTokenizerBase, limit: int | None
) -> Named:
    """Return a task with its samples, at most `limit` of them.

    Raises DataError if its files cannot be read, and if there are no samples.
    """
    name, task = given
    try:
        samples = list(islice(task.samples(tokenizer), limit))
    except OSError as error:
        raise DataError(f"task {name!r} cannot read its files: {error}.") from error
    if not samples:
        raise DataError(f"task {name!r} has no samples.")
    return Named(name=name, samples=samples, metric=task.metric)
