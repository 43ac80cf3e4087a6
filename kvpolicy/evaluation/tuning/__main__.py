"""Print what a search finds for the needle model's prompts, beside recipes, in Markdown.

python -m kvpolicy.evaluation.tuning
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from kvpolicy.evaluation import needle
from kvpolicy.evaluation.needle.vocabulary import QUESTION
from kvpolicy.evaluation.runs.prompt import QuestionPlace
from kvpolicy.evaluation.tuning import tune

RECIPES = ("restkv", "snapkv", "replay", "expectedattention", "random")
PLACES: tuple[QuestionPlace, ...] = ("inside", "outside")


def main(
    prompts: Annotated[int, typer.Option(min=4, help="Half of them are held out.")] = 48,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 512,
    facts: Annotated[int, typer.Option(min=1, help="Facts of a prompt.")] = 32,
    budget: Annotated[int, typer.Option(min=1, help="Positions of each head.")] = 64,
    trials: Annotated[int, typer.Option(min=1, help="How many policies are tried.")] = 60,
) -> None:
    """Search twice, with the question inside and outside of what is evicted."""
    model, data = needle.load(), rows(prompts, tokens, facts)
    typer.echo(
        "# What a search finds for the needle model\n\n"
        "`kvpolicy tune` on the needle model's own prompts. This prints the page:\n\n"
        f"    python -m kvpolicy.evaluation.tuning {' '.join(sys.argv[1:])}".rstrip()
    )
    for place in PLACES:
        found = tune(
            *model,
            data=data,
            budget=budget,
            trials=trials,
            recipes=RECIPES,
            metric="contains",
            question=place,
            max_new_tokens=3,
        )
        policy = json.dumps(_parts(found.policy.to_dict()), indent=2)
        typer.echo(f"\n## The question {place}\n\n{found}\n\n```json\n{policy}\n```")


def rows(prompts: int, tokens: int, facts: int) -> list[dict[str, str]]:
    """Return prompts as rows of own data: a context, a question and the answer."""
    found = []
    for each in needle.generate_prompts(tokens=tokens, facts=facts, count=prompts, seed=0):
        context, mark, question = each.text.rpartition(QUESTION)
        row = {"context": context.rstrip(), "question": mark + question, "answer": each.answer}
        found.append(row)
    return found


def _parts(policy: dict[str, Any]) -> dict[str, Any]:
    """Return what a search chooses of a policy."""
    chosen = ("scorer", "smoother", "allocator", "group", "recent", "sinks", "budget")
    return {name: policy[name] for name in chosen}


if __name__ == "__main__":
    typer.run(main)
