"""Runs the demo: all entrants on the needle task, and one prompt looked at word by word."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from kvpolicy.budget import Budget, Within, positions_of, written
from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.demo.specimen import Specimen, read_specimen
from kvpolicy.evaluation.needle import NeedlePrompt
from kvpolicy.evaluation.reports.comparison import Comparison, compared
from kvpolicy.evaluation.runs.engine import InProcess
from kvpolicy.evaluation.runs.entrant import Recipe, entrants
from kvpolicy.evaluation.runs.grid import Grid, Named
from kvpolicy.evaluation.runs.prompt import PromptFormat
from kvpolicy.evaluation.runs.results import Results
from kvpolicy.evaluation.runs.row import Row
from kvpolicy.evaluation.tasks.needle import NeedleTask
from kvpolicy.huggingface.model.config import decoder_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def run_demo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: NeedleTask,
    *,
    recipes: Iterable[Recipe],
    budgets: Sequence[Budget],
    on_start: Callable[[Grid], object] = lambda grid: None,
    on_row: Callable[[Row, bool], object] = lambda row, ran: None,
) -> tuple[Comparison, Specimen]:
    """Compare recipes with the full cache, and look at what each keeps of the first prompt.

    A budget that is a share is one of the first prompt. Raises InvalidValueError for prompts that
    cannot be written or are too long for the model, and if nothing can be compared.
    """
    check_budgets(budgets)
    prompts = _prompts(model, tokenizer, task)
    tokens = _longest(prompts[:1], tokenizer)
    positions = [positions_of(budget, tokens, protected=0) for budget in budgets]
    grid = Grid(
        engine=InProcess(model=model, tokenizer=tokenizer),
        format=PromptFormat(tokenizer=tokenizer),
        entrants=entrants(recipes, positions),
        tasks=[Named(name="needle", samples=list(task.samples(tokenizer)), metric=task.metric)],
    )
    on_start(grid)
    rows = grid.run(Results(), on_row)
    comparison = compared(rows, grid.entrants)
    return comparison, read_specimen(
        model,
        tokenizer,
        prompts[0],
        grid.entrants,
        rows[: len(grid.entrants)],
        comparison.telling_budget,
    )


def check_budgets(budgets: Iterable[Budget]) -> None:
    """Raise InvalidValueError for an error target: the demo compares equal positions."""
    for budget in budgets:
        if isinstance(budget, Within):
            raise InvalidValueError(
                f"the demo compares recipes at equal positions, but {written(budget)} is an error "
                "target. Give positions or shares, or use `kvpolicy eval`."
            )


def _prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: NeedleTask
) -> list[NeedlePrompt]:
    """Return the prompts, or say that they cannot be written or are too long."""
    longest = getattr(decoder_config(model), "max_position_embeddings", None) or task.length
    if task.length <= longest:
        prompts = task.prompts()
        if _longest(prompts, tokenizer) <= longest:
            return prompts
    raise InvalidValueError(
        f"prompts of {task.length} words are too long: the demo's model reads at most {longest} "
        "tokens. Give fewer --tokens."
    )


def _longest(prompts: Sequence[NeedlePrompt], tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens the longest prompt has."""
    return max(len(tokenizer(each.text)["input_ids"]) for each in prompts)
