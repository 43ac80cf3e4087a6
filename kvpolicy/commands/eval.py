"""`kvpolicy eval`: recipes at several budgets against the full cache, on own data and on tasks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kvpolicy.budget import read_budget
from kvpolicy.commands.options import Attention, Chat, Device, Dtype, Model, TrustRemoteCode
from kvpolicy.commands.recipes import read_recipes
from kvpolicy.errors import InvalidValueError, shown, suggest

if TYPE_CHECKING:
    from kvpolicy.evaluation.evaluate import Evaluation
    from kvpolicy.evaluation.runs.engine import Engine

PAGES = (".html", ".md")

app = typer.Typer(add_completion=False)


@app.command()
def evaluate(
    model: Model,
    recipes: Annotated[
        str, typer.Option(help="Names, JSON files of policies, or all; see `kvpolicy list recipe`.")
    ],
    budgets: Annotated[
        str, typer.Option(help="Positions per head (64), shares (25%), errors (within:2%).")
    ] = "",
    data: Annotated[
        Path | None, typer.Option(help="Your own samples, a JSON object a line.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="A task or a group of tasks; see `kvpolicy list task`. May be repeated."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="An option of the tasks, such as length=4096. May be repeated."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="For --data: f1, contains ... or module:name.")
    ] = None,
    question: Annotated[
        Literal["inside", "outside"],
        typer.Option(help="Evict context and question, or ask after the context was evicted."),
    ] = "inside",
    chat: Chat = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where samples set no limit.")] = 64,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=2, help="Cut longer prompts in the middle.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Samples of each task.")] = None,
    baseline: Annotated[str, typer.Option(help="Whom the others are compared with.")] = "full",
    output: Annotated[
        Path,
        typer.Option(help="Append each run to this file, or to a folder such as s3://bucket/runs."),
    ] = Path("kvpolicy-eval.jsonl"),
    page: Annotated[Path | None, typer.Option(help="Write a page: .html or .md.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run again what failed before.")] = False,
    references: Annotated[
        bool, typer.Option(help="Let recipe random take part at each budget.")
    ] = True,
    oracle: Annotated[
        bool, typer.Option("--oracle", help="Let an oracle take part, which knows each answer.")
    ] = False,
    batch: Annotated[
        int, typer.Option(min=1, help="Read so many prompts together, once for all recipes.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attention: Attention = None,
    trust_remote_code: TrustRemoteCode = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Compute in this process or on a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of the cluster; without it one starts on this machine.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Each has the model once.")] = None,
    num_gpus: Annotated[
        float | None, typer.Option(min=0, help="Of each worker; a fraction shares a GPU.")
    ] = None,
    num_cpus: Annotated[float | None, typer.Option(min=0, help="Of each worker.")] = None,
) -> None:
    """Compare recipes with the full cache, on your own data or on tasks.

    Each run is written to --output at once. The same command goes on where it stopped.
    """
    from kvpolicy.commands.checkpoints import Checkpoint
    from kvpolicy.commands.engines import engine_named
    from kvpolicy.evaluation.evaluate import check_arguments
    from kvpolicy.evaluation.runs.stored import address_of
    from kvpolicy.evaluation.tasks.groups import expanded

    arguments: dict[str, Any] = {
        "recipes": read_recipes(recipes),
        "budgets": [read_budget(text) for text in _split(budgets)],
        "data": data,
        "tasks": _tasks(expanded(task or ()), option or ()),
        "metric": metric,
        "question": question,
        "chat": chat,
        "max_new_tokens": max_new_tokens,
        "max_prompt_tokens": max_prompt_tokens,
        "limit": limit,
        "baseline": baseline,
        "results": output,
        "retry": retry,
        "references": references,
        "oracle": oracle,
        "batch": batch,
    }
    if page is not None and page.suffix not in PAGES:
        raise InvalidValueError(
            f"a page is written as {' or '.join(PAGES)}, but --page is {shown(str(page))}."
        )
    check_arguments(**arguments)
    checkpoint = Checkpoint(
        name=model,
        dtype=dtype,
        device=device,
        attention=attention,
        trust_remote_code=trust_remote_code,
    )
    cluster = {"address": address, "workers": workers, "num_gpus": num_gpus, "num_cpus": num_cpus}
    found = _evaluated(engine_named(engine, checkpoint, **cluster), arguments)
    if page is not None:
        _write(page, found.html() if page.suffix == ".html" else found.markdown())
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _print(found)
        typer.echo(
            f"Rows: {address_of(output) or output}" + ("" if page is None else f"\nPage: {page}")
        )


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _tasks(names: Iterable[str], options: Iterable[str]) -> list[dict[str, Any]]:
    """Return tasks with their options: each task takes those that it has.

    A value is JSON, or else a text. Raises InvalidValueError for an option that no task has.
    """
    from kvpolicy.discovery.registry import find

    tasks = [{"name": name} for name in names]
    known = {name: find("task", name).options for name in names}
    for given in options:
        option, equals, text = given.partition("=")
        if not (option and equals):
            raise InvalidValueError(f"--option is name=value, but is {shown(given)}.")
        takers = [task for task in tasks if option in known[task["name"]]]
        if not takers:
            every = sorted({each for own in known.values() for each in own})
            raise InvalidValueError(
                f"no task has the option {shown(option)}.{suggest(option, every)} Options of these "
                f"tasks: {', '.join(every) or 'none'}."
            )
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        for task in takers:
            task[option] = value
    return tasks


def _evaluated(engine: Engine, arguments: dict[str, Any]) -> Evaluation:
    from rich.console import Console

    from kvpolicy.commands.progress import shown_progress
    from kvpolicy.evaluation.evaluate import evaluate

    with shown_progress(Console(stderr=True)) as bar:
        return evaluate(engine=engine, **arguments, on_start=bar.start, on_row=bar.advance)


def _print(found: Evaluation) -> None:
    """Print a table for each task, and what went wrong."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from kvpolicy.evaluation.reports import wording
    from kvpolicy.evaluation.reports.summary import by_task

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    for name, cells in by_task(found.cells).items():
        table = Table(title=escape(f"{name}: {cells[0].metric}"), box=box.SIMPLE)
        for heading in wording.HEADINGS:
            left = heading == wording.HEADINGS[0]
            table.add_column(heading, justify="left" if left else "right")
        for cell in cells:
            table.add_row(*map(escape, wording.line(cell)))
        console.print(table)
        for complaint in wording.complaints(cells):
            console.print(f"[red]{escape(complaint)}[/red]", soft_wrap=True)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidValueError(
            f"cannot write {shown(str(file))}: {reason}. Give a file in a folder "
            "that exists. The rows are written, so the same command is quick now."
        ) from error
