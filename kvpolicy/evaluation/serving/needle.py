"""Print how many questions the needle model answers in vLLM and in transformers, with a policy.

python -m kvpolicy.evaluation.serving.needle [--recipes snapkv,restkv --budgets 64,128]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import attrs
import torch
import typer

from kvpolicy.composition import recipe
from kvpolicy.evaluation.needle.loading import MODEL, load
from kvpolicy.evaluation.needle.reader import Reader, batches
from kvpolicy.evaluation.serving.engine import BLOCK, Arrival, engine, serve
from kvpolicy.evaluation.tasks.needle import NeedleTask
from kvpolicy.policy import Policy
from kvpolicy.vllm.rounding import Rounding

TOKENS, FACTS = 512, 32
"""The sizes of the prompts of `kvpolicy demo`."""


@attrs.frozen(kw_only=True)
class Answers:
    """How many of `asked` questions each side answers, and how many answers are the same."""

    asked: int
    vllm: int
    transformers: int
    same: int


def answers(policy: Policy, prompts: int, seed: int = 0) -> Answers:
    """Ask vLLM and the model with a `PolicyCache` the same questions."""
    model, tokenizer = load()
    reader = Reader(model, tokenizer)
    questions = NeedleTask(length=TOKENS, facts=FACTS, num_samples=prompts, seed=seed).prompts()
    ids = [reader.encode([each])[0].tolist() for each in questions]
    room = max(len(tokenizer.tokenize(each.answer)) for each in questions) + 1
    with engine(MODEL, policy.to_dict(), max_num_batched_tokens=2048) as llm:
        served = serve(llm, [Arrival(prompt=each, tokens=room) for each in ids])
    said = [_text(tokenizer, each.tokens) for each in served]
    budget = Rounding.of(policy).kept(len(ids[0]), block=BLOCK)
    wanted: list[str] = []
    with torch.inference_mode():
        for batch in batches(questions):
            with attrs.evolve(policy, budget=budget).cache(model) as cache:
                wanted += reader.answer(batch, cache)
    right = [each.answer for each in questions]
    return Answers(
        asked=len(questions),
        vllm=sum(map(str.__eq__, said, right)),
        transformers=sum(map(str.__eq__, wanted, right)),
        same=sum(map(str.__eq__, said, wanted)),
    )


def _text(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Return the text of an answer up to the end of text."""
    end = tokenizer.eos_token_id
    own = tokens[: tokens.index(end)] if end in tokens else tokens
    return str(tokenizer.decode(own, skip_special_tokens=True))


def main(
    recipes: Annotated[str, typer.Option(help="Recipes.")] = "streamingllm,snapkv,restkv",
    budgets: Annotated[str, typer.Option(help="Budgets.")] = "64,128",
    prompts: Annotated[int, typer.Option(help="Questions.")] = 50,
) -> None:
    """Print a line for each recipe and budget; exit with 1 if an answer differs."""
    typer.echo(
        "| recipe | budget | questions | right in vLLM | right in transformers | same answers |\n"
        "|---|--:|--:|--:|--:|--:|"
    )
    different = 0
    for name in recipes.split(","):
        for budget in map(int, budgets.split(",")):
            policy = recipe(name, budget=budget, every=None, slot_positions=False)
            found = answers(policy, prompts)
            counts = (found.asked, found.vllm, found.transformers, found.same)
            typer.echo(f"| {name} | {budget} | {' | '.join(map(str, counts))} |")
            different += found.asked - found.same
    raise typer.Exit(1 if different else 0)


if __name__ == "__main__":
    typer.run(main)
