"""Evaluates recipes on a model: the function behind `kvpolicy.evaluate` and `kvpolicy eval`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from kvpolicy.budget import LARGEST, Budget
from kvpolicy.errors import InvalidValueError, shown
from kvpolicy.evaluation.chosen_tasks import named, own, with_samples
from kvpolicy.evaluation.reports.markdown import markdown
from kvpolicy.evaluation.reports.page import page
from kvpolicy.evaluation.reports.summary import Cell, summary
from kvpolicy.evaluation.runs.engine import Engine, engine_of
from kvpolicy.evaluation.runs.entrant import FULL, Entrant, Recipe, entrants
from kvpolicy.evaluation.runs.grid import Grid
from kvpolicy.evaluation.runs.prompt import PromptFormat, QuestionPlace
from kvpolicy.evaluation.runs.row import Row
from kvpolicy.evaluation.runs.stored import results_at
from kvpolicy.evaluation.tasks.own import Data
from kvpolicy.named import Part
from kvpolicy.task import Judge, Metric, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@attrs.frozen(kw_only=True)
class Evaluation:
    """The rows of an evaluation, and what they add up to; printing it gives a table.

    `baseline` is the entrant that the others are compared with, on the same samples.
    """

    rows: tuple[Row, ...] = attrs.field(repr=False)
    baseline: str = FULL

    @property
    def cells(self) -> list[Cell]:
        """A figure for each entrant, budget and task, with its interval."""
        return summary(self.rows, baseline=self.baseline)

    def against(self, baseline: str) -> Evaluation:
        """Return the same rows, compared with another recipe."""
        summary(self.rows, baseline=baseline)
        return attrs.evolve(self, baseline=baseline)

    def markdown(self) -> str:
        """Return a Markdown table for each task."""
        return markdown(self.cells, baseline=self.baseline)

    def html(self) -> str:
        """Return a page of HTML that needs nothing beside itself."""
        return page(self.cells, baseline=self.baseline, rows=self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures of all cells as plain JSON data."""
        return {"baseline": self.baseline, "cells": [cell.to_dict() for cell in self.cells]}

    def __str__(self) -> str:
        """Return the tables."""
        return self.markdown()

    def _repr_markdown_(self) -> str:
        """Return the tables, which a notebook shows."""
        return self.markdown()


def evaluate(
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    engine: Engine | None = None,
    recipes: Iterable[Recipe] | Mapping[str, Recipe],
    budgets: Iterable[Budget] = (),
    data: Data | None = None,
    tasks: Iterable[Part[Task]] = (),
    metric: str | Judge | Metric | None = None,
    question: QuestionPlace = "inside",
    chat: bool = False,
    max_new_tokens: int = 64,
    max_prompt_tokens: int | None = None,
    limit: int | None = None,
    results: str | os.PathLike[str] | None = None,
    baseline: str = FULL,
    retry: bool = False,
    references: bool = True,
    oracle: bool = False,
    batch: int = 1,
    on_start: Callable[[Grid], object] = lambda grid: None,
    on_row: Callable[[Row, bool], object] = lambda row, ran: None,
) -> Evaluation:
    """Compare recipes at several budgets with the full cache, on data or tasks; see `Evaluation`.

    - `engine`: computes the runs in place of this process, and loads the model itself, such as
      `kvpolicy.evaluation.runs.cluster.RayEngine`.
    - `recipes`: names, JSON files of policies, or policies; a mapping gives them names.
    - `budgets`: positions (an int) or shares of the prompt (a float).
    - `data`: a file of JSON lines or mappings, with `prompt`, or `context` and `question`, or
      `messages`, and with `answer` or `answers`. docs/evaluation.md has all fields.
    - `tasks`: names, mappings of `name` and options, or tasks; `kvpolicy list task` prints them.
    - `metric`: for `data`, a name, `module:name`, or a function of the text and the sample.
      The default is `agreement` if no row has an answer, `multiple_choice` if all have choices,
      else `f1`.
    - `question`: `inside`: context and question are read, and then evicted. `outside`: the context
      is evicted before the question is asked.
    - `max_prompt_tokens`: cut longer prompts in the middle.
    - `limit`: only so many samples of each task.
    - `results`: a file to which each run is appended, and from which a later call goes on; or the
      address of a folder that fsspec opens, such as s3://bucket/runs.
    - `retry`: run again what failed before.
    - `references`: let recipe `random` take part at each budget.
    - `oracle`: let the oracle take part at each budget. It keeps what the question and the full
      cache's own answer will need most, so no method can know it.
    - `batch`: read so many prompts of one length together, and once for all recipes. Times are then
      not known. It is for metrics of texts.

    >>> from kvpolicy.evaluation import needle
    >>> model, tokenizer = needle.load()
    >>> [prompt] = needle.generate_prompts(tokens=96, facts=4, count=1, seed=0)
    >>> found = evaluate(model, tokenizer, recipes=["restkv"], budgets=[48],
    ...     data=[{"prompt": prompt.text, "answer": prompt.answer}], metric="exact_match")
    >>> [(cell.title, cell.estimate.value) for cell in found.cells][0]
    ('full', 1.0)

    What a run raises becomes an error in its row. Raises DataError for data that are malformed,
    ResultsError for a file of results that cannot be gone on with, and InvalidValueError or
    UnknownComponentError for arguments that make no sense.
    """
    given, tested = check_arguments(
        recipes=recipes,
        budgets=budgets,
        data=data,
        tasks=tasks,
        metric=metric,
        question=question,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        limit=limit,
        baseline=baseline,
        references=references,
        oracle=oracle,
        batch=batch,
    )
    written = results_at(results)
    with engine_of(model, tokenizer, engine) as opened:
        grid = Grid(
            engine=opened,
            format=PromptFormat(
                tokenizer=opened.tokenizer, chat=chat, question=question, longest=max_prompt_tokens
            ),
            entrants=given,
            tasks=[with_samples(each, opened.tokenizer, limit) for each in tested],
            max_new_tokens=max_new_tokens,
            retry=retry,
            batch=batch,
        )
        on_start(grid)
        return Evaluation(rows=tuple(grid.run(written, on_row)), baseline=baseline)


def check_arguments(
    *,
    recipes: Iterable[Recipe] | Mapping[str, Recipe],
    budgets: Iterable[Budget],
    data: Data | None,
    tasks: Iterable[Part[Task]],
    metric: str | Judge | Metric | None,
    limit: int | None,
    baseline: str,
    references: bool = True,
    oracle: bool = False,
    **settings: Any,
) -> tuple[list[Entrant], list[tuple[str, Task]]]:
    """Return the entrants, and the tasks by name; raise what `evaluate` raises, without a model."""
    _check_settings(limit=limit, **settings)
    tested = [*own(data, metric, limit), *map(named, tasks)]
    if not tested:
        raise InvalidValueError("there is nothing to evaluate on. Give data or tasks.")
    names = [name for name, _ in tested]
    if len(set(names)) < len(names):
        raise InvalidValueError(f"two tasks have the same name: {', '.join(names)}.")
    given = entrants(recipes, budgets, random=references, oracle=oracle)
    if baseline not in {each.name for each in given}:
        known = ", ".join(dict.fromkeys(each.name for each in given))
        raise InvalidValueError(
            f"the baseline {shown(baseline)} does not take part. Choose one of: {known}."
        )
    return given, tested


def _check_settings(**settings: Any) -> None:
    question = settings.pop("question", "inside")
    if question not in ("inside", "outside"):
        raise InvalidValueError(
            f"question must be 'inside' or 'outside', but is {shown(question)}."
        )
    for name in ("max_new_tokens", "max_prompt_tokens", "limit", "batch"):
        value, least = settings.get(name), 2 if name == "max_prompt_tokens" else 1
        if value is not None and not (isinstance(value, int) and least <= value <= LARGEST):
            raise InvalidValueError(
                f"{name} must be {least} or more, and at most {LARGEST}, but is {shown(value)}."
            )
