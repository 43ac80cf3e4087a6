"""`kvpolicy demo`: compares recipes with the full cache, on the needle task."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvpolicy.budget import read_budget
from kvpolicy.commands.stdout import plugins_print_to_stderr
from kvpolicy.errors import InvalidValueError, shown

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kvpolicy.budget import Budget
    from kvpolicy.evaluation.demo.specimen import Specimen
    from kvpolicy.evaluation.reports.comparison import Comparison
    from kvpolicy.evaluation.tasks.needle import NeedleTask

PICTURES = (".pdf", ".png", ".svg")
RECIPES = ("streamingllm", "h2o", "tova", "snapkv", "pyramidkv", "restkv")
"""The recipes that the paper of ReST-KV compares."""

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    recipes: Annotated[
        str | None,
        typer.Option(
            help="Names and JSON files of policies, or all. Without it: those of ReST-KV's paper.",
            show_default=False,
        ),
    ] = None,
    budgets: Annotated[
        str, typer.Option(help="Positions per head (64), or shares of the prompt (25%).")
    ] = "40,64,128,256",
    model: Annotated[
        str | None,
        typer.Option(
            help="Another model than the small one that ships: a folder, or an id on the Hub.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Words of every prompt.")] = 512,
    facts: Annotated[int, typer.Option(min=1, help="How many facts every prompt has.")] = 32,
    prompts: Annotated[
        int, typer.Option(min=1, max=10_000, help="How many prompts each recipe answers.")
    ] = 20,
    seed: Annotated[int, typer.Option(help="Another seed gives other prompts.")] = 0,
    output: Annotated[Path, typer.Option(help="Where to write the page.")] = Path(
        "kvpolicy-demo.html"
    ),
    picture: Annotated[
        Path | None, typer.Option(help="Also write the pictures here: .png, .svg or .pdf.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare recipes with the full cache, and show which tokens each one keeps.

    A small model reads prompts with many facts, and is then asked for one of them.
    """
    from rich.console import Console

    from kvpolicy.commands.comparisons import print_conclusion, print_table
    from kvpolicy.evaluation.demo.page import page
    from kvpolicy.evaluation.pictures import save_picture
    from kvpolicy.evaluation.tasks.needle import NeedleTask

    _check_paths(output, picture)
    given, names = _budgets(budgets), _recipes(recipes)
    _check_entrants(names, given)
    task = NeedleTask(length=tokens, facts=facts, num_samples=prompts, seed=seed)
    console = Console(stderr=as_json, highlight=False)
    comparison, specimen = _compare(console, model, task, names, given)
    command = _command(
        recipes=recipes,
        budgets=budgets,
        model=model,
        tokens=tokens,
        facts=facts,
        prompts=prompts,
        seed=seed,
    )
    output.write_text(page(comparison, specimen, command=command), encoding="utf-8")
    if picture is not None:
        save_picture(picture, comparison, specimen)
    if as_json:
        typer.echo(json.dumps(comparison.to_dict(), indent=2))
    else:
        print_table(console, comparison)
    print_conclusion(console, comparison, output)


def _compare(
    console: Console,
    model: str | None,
    task: NeedleTask,
    recipes: Sequence[str],
    budgets: Sequence[Budget],
) -> tuple[Comparison, Specimen]:
    """Run the demo under a progress bar."""
    from kvpolicy.commands.progress import shown_progress
    from kvpolicy.evaluation.demo.run import run_demo

    loaded, tokenizer = _load(model)
    with shown_progress(console) as bar:
        return run_demo(
            loaded,
            tokenizer,
            task,
            recipes=recipes,
            budgets=budgets,
            on_start=bar.start,
            on_row=bar.advance,
        )


def _command(**options: object) -> str:
    """Write the command that does the same again."""
    given = (
        f"--{name} {shlex.quote(str(value))}"
        for name, value in options.items()
        if value is not None
    )
    return " ".join(["kvpolicy demo", *given])


def _check_paths(output: Path, picture: Path | None) -> None:
    """Raise InvalidValueError if a path cannot be written, before the work begins."""
    for path in filter(None, (output, picture)):
        if not _can_be_written(path):
            raise InvalidValueError(
                f"cannot write {shown(str(path))}. Give a file in a folder that exists and that "
                "you may write to."
            )
    if picture is not None and picture.suffix not in PICTURES:
        raise InvalidValueError(
            f"--picture must end in one of {', '.join(PICTURES)}, but is {shown(str(picture))}."
        )


def _can_be_written(path: Path) -> bool:
    folder = path.absolute().parent
    try:
        return folder.is_dir() and not path.is_dir() and os.access(folder, os.W_OK)
    except (OSError, ValueError):  # a name that is too long, say
        return False


def _recipes(text: str | None) -> list[str]:
    """Read `--recipes`. Without it, those of RECIPES that are installed."""
    from kvpolicy.commands.recipes import installed_recipes, read_recipes

    if text is None:
        known = installed_recipes()
        return [name for name in RECIPES if name in known]
    names = read_recipes(text)
    if not names:
        raise InvalidValueError(
            f"--recipes names none. Give names such as {','.join(RECIPES[-2:])}, or all."
        )
    return names


def _budgets(text: str) -> list[Budget]:
    budgets = [read_budget(part) for part in text.split(",") if part.strip()]
    if not budgets:
        raise InvalidValueError("--budgets is empty. Give budgets such as 48,64,25%.")
    return budgets


def _check_entrants(recipes: Sequence[str], budgets: Sequence[Budget]) -> None:
    """Raise what is wrong with the names of recipes, before a model is loaded."""
    from kvpolicy.evaluation.demo.run import check_budgets
    from kvpolicy.evaluation.runs.entrant import entrants

    check_budgets(budgets)
    with plugins_print_to_stderr():
        entrants(recipes, budgets)


def _load(model: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers.utils.logging import disable_progress_bar

    from kvpolicy.commands.checkpoints import Checkpoint
    from kvpolicy.evaluation import needle

    if model is None:
        disable_progress_bar()  # the model is small enough to load without one
        return needle.load()
    checkpoint = Checkpoint(name=model)
    return checkpoint.model(), checkpoint.tokenizer()
