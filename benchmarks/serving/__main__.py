"""Print what eviction inside vLLM saves on this CPU, beside the same engine without a policy.

python -m benchmarks.serving [--recipe snapkv --share 0.25 --prompt 640 --blocks 200]
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.serving.measures import Backlog, blocks_after_prompt, serve_backlog
from kvpolicy.evaluation.serving.engine import BLOCK, engine
from kvpolicy.evaluation.serving.models import saved
from kvpolicy.evaluation.serving.situations import prompts

LENGTHS = (256, 500, 640, 1000)
SIDES = ("full cache", "evicted")


def main(
    recipe: Annotated[str, typer.Option(help="The recipe.")] = "snapkv",
    share: Annotated[float, typer.Option(help="The share of a prompt that is kept.")] = 0.25,
    prompt: Annotated[int, typer.Option(help="Tokens of each prompt of the backlog.")] = 640,
    count: Annotated[int, typer.Option(help="Prompts of the backlog.")] = 80,
    tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 64,
    blocks: Annotated[int, typer.Option(help="Blocks of the pool.")] = 200,
) -> None:
    """Measure both engines one after the other, in this process."""
    asked = {"recipe": recipe, "budget": share, "every": None}
    used: dict[str, list[int]] = {}
    backlogs: dict[str, Backlog] = {}
    with TemporaryDirectory() as folder:
        place = saved("llama", Path(folder))
        for side, policy in zip(SIDES, (None, asked), strict=True):
            with engine(place, policy, **_options(blocks, count)) as llm:
                used[side] = [
                    blocks_after_prompt(llm, each) for each in prompts(256, LENGTHS, seed=2)
                ]
                serve_backlog(llm, prompts(256, [prompt], seed=3), 2)  # warm
                backlogs[side] = serve_backlog(llm, prompts(256, [prompt] * count), tokens)
    _print_blocks(used)
    typer.echo(
        f"\n{count} prompts of {prompt} tokens, {tokens} tokens answered each, {blocks} blocks:\n"
    )
    _print_backlogs(backlogs)


def _options(blocks: int, count: int) -> dict[str, Any]:
    return {
        "num_gpu_blocks_override": blocks + 1,
        "max_num_seqs": count,
        "max_num_batched_tokens": 1024,
        "max_model_len": 1024,
    }


def _print_blocks(used: dict[str, list[int]]) -> None:
    typer.echo(f"| tokens of the prompt | {' | '.join(SIDES)} |\n|--:|--:|--:|")
    for at, length in enumerate(LENGTHS):
        typer.echo(f"| {length} | {' | '.join(str(used[side][at]) for side in SIDES)} |")
    typer.echo(f"\nBlocks of {BLOCK} tokens that a request holds after its prompt.")


def _print_backlogs(backlogs: dict[str, Backlog]) -> None:
    typer.echo(
        "| engine | most requests at once | preemptions | steps | seconds | processor seconds "
        "| tokens a processor second |\n|---|--:|--:|--:|--:|--:|--:|"
    )
    for side, found in backlogs.items():
        fields = (found.most, found.preemptions, found.steps)
        times = f"{found.seconds:.1f} | {found.cpu_seconds:.1f} | {found.rate:.0f}"
        typer.echo(f"| {side} | {' | '.join(map(str, fields))} | {times} |")


if __name__ == "__main__":
    typer.run(main)
