"""Print how far vLLM's answers are from a `PolicyCache`'s, by model, recipe and situation.

python -m kvpolicy.evaluation.serving.exactness [--models llama --recipes restkv --situations ...]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import attrs
import typer
from transformers import AutoModelForCausalLM

from kvpolicy.composition import recipe
from kvpolicy.evaluation.serving.engine import core_of, engine, serve, worker_of
from kvpolicy.evaluation.serving.models import MODELS, saved
from kvpolicy.evaluation.serving.situations import SITUATIONS
from kvpolicy.evaluation.serving.yardstick import Comparison, compared

RECIPES = ("restkv", "snapkv", "expectedattention", "keydiff", "chunkkv", "random", "tova")
BUDGET = 64
LIMIT = 1e-4
"""The largest difference of a log probability in float32."""


@attrs.frozen(kw_only=True)
class Cell:
    """All requests of one engine: `left` counts what they left behind in it."""

    model: str
    recipe: str
    situation: str
    requests: Sequence[Comparison]
    preemptions: int
    left: int

    @property
    def difference(self) -> float:
        """The largest difference of a log probability."""
        return max(each.difference for each in self.requests)

    @property
    def is_exact(self) -> bool:
        """Whether positions and tokens are the same, differences small, and nothing left."""
        same = all(each.same_positions and each.same_tokens for each in self.requests)
        return same and self.difference < LIMIT and not self.left

    def line(self) -> str:
        """Return the cell as a line of a table in Markdown."""
        evicted = sum(each.evicted for each in self.requests)
        moved = max(each.moved for each in self.requests)
        outcome = "exact" if self.is_exact else "WRONG"
        fields = (
            *(self.model, self.recipe, self.situation, len(self.requests), evicted),
            *(self.preemptions, f"{self.difference:.1e}", f"{moved:.1f}", outcome),
        )
        return f"| {' | '.join(map(str, fields))} |"


HEAD = (
    "| model | recipe | situation | requests | positions evicted | preemptions "
    "| largest difference | moved by eviction | outcome |\n|---|---|---|--:|--:|--:|--:|--:|---|"
)


def measured(model: str, name: str, situation: str, folder: Path) -> Cell:
    """Serve the requests of a situation, and compare each with a cache of its own."""
    place, setting = saved(model, folder), SITUATIONS[situation]
    yardstick = AutoModelForCausalLM.from_pretrained(place, local_files_only=True)
    policy = recipe(name, budget=BUDGET, every=None)
    with engine(place, policy.to_dict(), **setting.options) as llm:
        pool = core_of(llm).scheduler.kv_cache_manager.block_pool
        free = pool.get_num_free_blocks()
        served = serve(llm, setting.arrivals(yardstick.config.vocab_size))
        left = free - pool.get_num_free_blocks() + len(worker_of(llm).kvpolicy_host.prompts)
    return Cell(
        model=model,
        recipe=name,
        situation=situation,
        requests=[compared(yardstick, policy, each) for each in served],
        preemptions=sum(each.preemptions for each in served),
        left=left,
    )


def _cells(
    models: Sequence[str], recipes: Sequence[str], situations: Sequence[str]
) -> Iterator[Cell]:
    with TemporaryDirectory() as folder:
        for model in models:
            for name in recipes:
                for situation in situations:
                    yield measured(model, name, situation, Path(folder))


def main(
    models: Annotated[str, typer.Option(help="Models.")] = ",".join(MODELS),
    recipes: Annotated[str, typer.Option(help="Recipes.")] = ",".join(RECIPES),
    situations: Annotated[str, typer.Option(help="Situations.")] = "all together",
) -> None:
    """Print a line for each model, recipe and situation; exit with 1 if one is not exact."""
    typer.echo(HEAD)
    wrong = 0
    for cell in _cells(models.split(","), recipes.split(","), situations.split(",")):
        typer.echo(cell.line())
        wrong += not cell.is_exact
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
