"""Memory over a long generation: a cache that evicts while decoding must not grow.

    python -m benchmarks.endurance [--recipe h2o] [--tokens 10000] [--budget 64]

A tiny random model decodes one token after another. Each token evicts, and the bytes of the cache
are read after it. Ends with status 1 if they grow after the first tokens.
"""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import torch
import typer

from kvpolicy import recipe as policy_of
from kvpolicy.exactness.usages import tokens
from kvpolicy.huggingface.cache_argument import handed
from kvpolicy.huggingface.report import readable_bytes
from kvpolicy.testing.models import tiny_model

RECIPES = ("h2o", "tova", "streamingllm", "lacache")


def sizes(recipe: str, *, tokens_decoded: int, budget: int) -> list[int]:
    """Return the bytes of the cache after each decoded token."""
    model = tiny_model("llama", num_hidden_layers=2, max_position_embeddings=tokens_decoded + 512)
    cache = policy_of(recipe, budget=budget, every=1).cache(model)
    model(input_ids=tokens(0, 2 * budget), **handed(cache, to=model), logits_to_keep=1)
    stream = (tokens(seed, 1) for seed in range(tokens_decoded))
    found = []
    for token in islice(stream, tokens_decoded):
        model(input_ids=token, **handed(cache, to=model))
        found.append(cache.nbytes)
    return found


def main(
    recipe: Annotated[list[str] | None, typer.Option(help="Which recipes decode.")] = None,
    length: Annotated[int, typer.Option("--tokens", help="How many tokens.")] = 10_000,
    budget: Annotated[int, typer.Option(help="Positions held.")] = 64,
) -> None:
    """Decode, and print the smallest and the largest size of each recipe's cache."""
    torch.set_grad_enabled(False)
    grew = False
    for name in recipe or RECIPES:
        found = sizes(name, tokens_decoded=length, budget=budget)
        first = max(found[: budget + 1])
        grew |= max(found) > first
        typer.echo(
            f"{name:>14}: {length} tokens decoded, {readable_bytes(min(found))} to "
            f"{readable_bytes(max(found))}; at most {readable_bytes(first)} in the first "
            f"{budget + 1}"
        )
    raise typer.Exit(1 if grew else 0)


if __name__ == "__main__":
    typer.run(main)
