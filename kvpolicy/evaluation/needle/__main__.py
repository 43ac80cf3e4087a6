"""Print prompts of the needle model as JSON lines, as a file of own data has them.

python -m kvpolicy.evaluation.needle --prompts 48 > needles.jsonl
"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from kvpolicy.evaluation.needle.prompts import generate_prompts
from kvpolicy.evaluation.needle.vocabulary import QUESTION


def main(
    prompts: Annotated[int, typer.Option(min=1, help="How many prompts.")] = 48,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 512,
    facts: Annotated[int, typer.Option(min=1, help="Facts of a prompt.")] = 32,
    seed: Annotated[int, typer.Option(help="Another seed gives other prompts.")] = 0,
) -> None:
    """Print a line for each prompt: its context, its question and the answer."""
    for each in generate_prompts(tokens=tokens, facts=facts, count=prompts, seed=seed):
        context, mark, question = each.text.rpartition(QUESTION)
        row = {"context": context.rstrip(), "question": mark + question, "answer": each.answer}
        typer.echo(json.dumps(row))


if __name__ == "__main__":
    typer.run(main)
