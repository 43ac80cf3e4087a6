"""`kvpolicy demo`: compares every installed recipe with the full cache, on the needle model."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvpolicy.budget import read_budget
from kvpolicy.commands.stdout import plugins_print_to_stderr
from kvpolicy.errors import InvalidValueError, shown

if TYPE_CHECKING:
    from rich.console import Console

    from kvpolicy.evaluation.contenders import Contender
    from kvpolicy.evaluation.needle import NeedlePrompt
    from kvpolicy.evaluation.reader import Reader
    from kvpolicy.evaluation.results import Comparison, Refusal
    from kvpolicy.evaluation.survival import Specimen

PICTURES = (".pdf", ".png", ".svg")

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    budgets: Annotated[
        str, typer.Option(help="Positions per head (64), or shares of the prompt (25%).")
    ] = "40,64,128,256",
    tokens: Annotated[int, typer.Option(help="Length of every prompt.")] = 512,
    facts: Annotated[int, typer.Option(min=1, help="How many facts every prompt has.")] = 32,
    prompts: Annotated[
        int, typer.Option(min=1, max=10_000, help="How many prompts each recipe answers.")
    ] = 32,
    seed: Annotated[int, typer.Option(help="Another seed gives other prompts.")] = 0,
    output: Annotated[Path, typer.Option(help="Where to write the page.")] = Path(
        "kvpolicy-demo.html"
    ),
    picture: Annotated[
        Path | None, typer.Option(help="Also write the pictures here: .png, .svg or .pdf.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare every installed recipe with the full cache, and show which tokens each one keeps.

    A small model reads prompts with many facts, and is then asked for one of them.
    """
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from kvpolicy.commands.comparisons import print_conclusion, print_table
    from kvpolicy.discovery.registry import installed
    from kvpolicy.evaluation import needle
    from kvpolicy.evaluation.contenders import contenders
    from kvpolicy.evaluation.page import page
    from kvpolicy.evaluation.pictures import save_picture
    from kvpolicy.evaluation.reader import Reader

    _check_paths(output, picture)
    positions = _positions(budgets, tokens)
    with plugins_print_to_stderr():
        recipes = sorted({part.name for part in installed("recipe")})
        accepted, refused = contenders(recipes, positions)
    disable_progress_bar()  # the model is small enough to load without one
    reader = Reader(*needle.load())
    questions = _questions(reader, tokens, facts, prompts, seed)
    console = Console(stderr=as_json, highlight=False)
    comparison = _compare(console, reader, questions, accepted, refused)
    specimen = _specimen(reader, questions[0], accepted, comparison)
    command = (
        f"kvpolicy demo --budgets '{budgets}' --tokens {tokens} --facts {facts} "
        f"--prompts {prompts} --seed {seed}"
    )
    output.write_text(page(comparison, specimen, command=command), encoding="utf-8")
    if picture is not None:
        save_picture(picture, comparison, specimen)
    if as_json:
        typer.echo(json.dumps(comparison.to_dict(), indent=2))
    else:
        print_table(console, comparison)
    print_conclusion(console, comparison, output)


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


def _questions(
    reader: Reader, tokens: int, facts: int, prompts: int, seed: int
) -> list[NeedlePrompt]:
    from kvpolicy.evaluation import needle

    longest = reader.model.config.max_position_embeddings
    if tokens > longest:
        raise InvalidValueError(
            f"--tokens is {tokens}, but the demo's model reads at most {longest} tokens."
        )
    try:
        return needle.generate_prompts(tokens=tokens, facts=facts, count=prompts, seed=seed)
    except ValueError as error:
        raise InvalidValueError(str(error)) from error


def _positions(budgets: str, tokens: int) -> list[int]:
    """Read budgets in positions. A share is a share of `tokens` tokens."""
    from kvpolicy.budget import positions_of

    read = [read_budget(text) for text in budgets.split(",") if text.strip()]
    if not read:
        raise InvalidValueError("--budgets is empty. Give budgets such as 48,64,25%.")
    return [positions_of(budget, tokens, protected=0) for budget in read]


def _compare(
    console: Console,
    reader: Reader,
    questions: Sequence[NeedlePrompt],
    accepted: Sequence[Contender],
    refused: Sequence[Refusal],
) -> Comparison:
    """Run the comparison under a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from kvpolicy.evaluation.comparison import batches, compare

    columns = (TextColumn("{task.description:<24}"), BarColumn(), TimeRemainingColumn())
    if hidden := not console.is_terminal:
        console = Console(quiet=True)  # rich before 14.3 ends a hidden bar with an empty line
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=len(accepted) * len(batches(questions)))

        def advance(contender: Contender) -> None:
            at = "" if contender.budget is None else f" at {contender.budget}"
            progress.update(task, advance=1, description=f"{contender.name}{at}")

        comparison = compare(reader, questions, accepted, refused, advance)
    if not comparison.rows:
        reasons = " ".join(sorted({refusal.reason for refusal in comparison.refusals}))
        raise InvalidValueError(f"no recipe could be compared. {reasons}")
    return comparison


def _specimen(
    reader: Reader,
    question: NeedlePrompt,
    accepted: Sequence[Contender],
    comparison: Comparison,
) -> Specimen:
    """Return the first prompt with what each recipe keeps, at the budget that differs most."""
    from kvpolicy.evaluation.survival import Specimen, survivals

    budget = comparison.telling_budget
    able = {row.name for row in comparison.at(budget)} | {comparison.full.name}
    shown = [each for each in accepted if each.budget in (None, budget) and each.name in able]
    return Specimen(
        words=reader.words(question),
        facts=question.facts,
        asked=question.answer_positions,
        budget=budget,
        survivals=survivals(reader, question, shown),
    )
