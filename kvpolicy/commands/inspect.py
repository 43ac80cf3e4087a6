"""`kvpolicy inspect`: which tokens of a prompt survive, and why a wrong answer is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvpolicy.budget import read_budget
from kvpolicy.commands.options import (
    Attention,
    Chat,
    Device,
    Dtype,
    Model,
    PromptFile,
    TrustRemoteCode,
)
from kvpolicy.commands.stdout import plugins_print_to_stderr
from kvpolicy.commands.writing import check_file, write
from kvpolicy.errors import InvalidValueError

app = typer.Typer(add_completion=False)


@app.command()
def inspect(
    model: Model,
    recipe: Annotated[
        str, typer.Option(help="A recipe, or a JSON file of a policy; see `kvpolicy list recipe`.")
    ],
    budget: Annotated[
        str, typer.Option(help="Positions per head (64), a share (25%) or an error (within:2%).")
    ],
    prompt: Annotated[str | None, typer.Option(help="The text that the model reads.")] = None,
    prompt_file: PromptFile = None,
    answer: Annotated[
        str | None, typer.Option(help="What a right answer contains; a wrong one is explained.")
    ] = None,
    needed: Annotated[
        str | None,
        typer.Option(help="The words of the prompt that the answer depends on; else the answer."),
    ] = None,
    chat: Chat = False,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Stop after this many new tokens.")
    ] = 32,
    page: Annotated[Path, typer.Option(help="Where to write the page.")] = Path(
        "kvpolicy-inspect.html"
    ),
    dtype: Dtype = "auto",
    device: Device = "auto",
    attention: Attention = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show which tokens of a prompt survive, and say why a wrong answer is wrong."""
    from kvpolicy.commands.checkpoints import Checkpoint
    from kvpolicy.commands.prompts import read_prompt
    from kvpolicy.evaluation.inspection import inspection, wording
    from kvpolicy.evaluation.inspection.page import page as in_html
    from kvpolicy.evaluation.inspection.prompt import tokenized
    from kvpolicy.evaluation.runs.entrant import entrants

    check_file("--page", page)
    with plugins_print_to_stderr():
        *_, entrant = entrants([recipe], [read_budget(budget)])
    if entrant.policy is None:
        raise InvalidValueError(f"recipe {recipe!r}: {entrant.refusal}")
    text = read_prompt(prompt, prompt_file)
    for option, value in (("--answer", answer), ("--needed", needed)):
        if value is not None and not value.strip():
            raise InvalidValueError(f"{option} is empty. Give some text, or leave it out.")
    checkpoint = Checkpoint(
        name=model,
        dtype=dtype,
        device=device,
        attention=attention,
        trust_remote_code=trust_remote_code,
    )
    tokenizer = checkpoint.tokenizer()
    tokens = tokenized(tokenizer, text, chat=chat)
    if needed is not None and not tokens.places_of(needed):
        raise InvalidValueError(
            f"--needed {needed!r} stands nowhere in the prompt. Give words as they stand there."
        )
    found = inspection.inspect(
        checkpoint.model(),
        tokenizer,
        tokens,
        entrant.policy,
        answer=answer,
        needed=needed,
        max_new_tokens=max_new_tokens,
    )
    write(page, in_html(found, name=entrant.title, model=model))
    for name, said in wording.answers(found, entrant.title):
        typer.echo(f"{name}: {said}")
    typer.echo(wording.kept(found))
    for sentence in wording.why(found.cause):
        typer.echo(sentence)
    typer.echo(f"Page: {page}")
