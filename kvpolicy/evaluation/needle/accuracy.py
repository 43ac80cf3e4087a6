"""How many questions the needle model answers exactly with the full cache.

python -m kvpolicy.evaluation.needle.accuracy [--json]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import attrs
import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvpolicy.evaluation.measures.interval import wilson_interval
from kvpolicy.evaluation.measures.text import exact_match
from kvpolicy.evaluation.needle import MODEL, NeedlePrompt, generate_prompts, load
from kvpolicy.evaluation.needle.prompts import CODE_LENGTH

BATCH_TOKENS = 16_384


@attrs.frozen(kw_only=True)
class Cell:
    """The exact answers to prompts of one length and one number of facts."""

    tokens: int
    facts: int
    prompts: int
    correct: int

    def as_dict(self) -> dict[str, Any]:
        """Return the counts, the share and its 95 % Wilson interval.

        >>> Cell(tokens=512, facts=8, prompts=10, correct=9).as_dict()["exact"]
        0.9
        """
        low, high = wilson_interval(self.correct, self.prompts)
        return attrs.asdict(self) | {
            "exact": round(self.correct / self.prompts, 4),
            "low": round(low, 4),
            "high": round(high, 4),
        }


def count_correct(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[NeedlePrompt],
    tokens: int,
) -> int:
    """Count the exact answers of greedy decoding, in batches."""
    size = max(1, BATCH_TOKENS // tokens)
    chunks = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    return sum(
        exact_match(answer, prompt.answer)
        for chunk in chunks
        for answer, prompt in zip(_answers(model, tokenizer, chunk), chunk, strict=True)
    )


@torch.inference_mode()
def _answers(model: Any, tokenizer: Any, prompts: Sequence[NeedlePrompt]) -> list[str]:
    inputs = tokenizer([prompt.text for prompt in prompts], return_tensors="pt")
    # Room for one token more than the answer: the end of text, or a word too many.
    answered = model.generate(**inputs, max_new_tokens=CODE_LENGTH + 1, do_sample=False)
    new = answered[:, inputs["input_ids"].shape[1] :]
    answers: list[str] = tokenizer.batch_decode(new, skip_special_tokens=True)
    return answers


def table(cells: Sequence[Cell]) -> Table:
    """Return a table with a line for each cell."""
    made = Table(title="Exact answers with the full cache (95 % Wilson interval)")
    for name in ("tokens", "facts", "prompts", "correct", "exact", "interval"):
        made.add_column(name, justify="right")
    for cell in cells:
        data = cell.as_dict()
        counts = map(str, (cell.tokens, cell.facts, cell.prompts, cell.correct))
        interval = f"{data['low']:.1%} to {data['high']:.1%}"
        made.add_row(*counts, f"{data['exact']:.1%}", interval)
    return made


def main(
    tokens: Annotated[str, typer.Option(help="Lengths of prompts.")] = "512,1024,2048",
    facts: Annotated[str, typer.Option(help="Numbers of facts.")] = "8,16,32,64",
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of each length and facts.")] = 200,
    seed: Annotated[int, typer.Option(help="Another seed writes other prompts.")] = 0,
    folder: Annotated[Path, typer.Option("--model", help="The model's folder.")] = MODEL,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Measure each length with each number of facts, and print the counts."""
    model, tokenizer = load(folder)
    cells = []
    for length in map(int, tokens.split(",")):
        for told in map(int, facts.split(",")):
            asked = generate_prompts(tokens=length, facts=told, count=prompts, seed=seed)
            correct = count_correct(model, tokenizer, asked, length)
            cells.append(Cell(tokens=length, facts=told, prompts=prompts, correct=correct))
            if as_json:
                typer.echo(json.dumps(cells[-1].as_dict()))
    if not as_json:
        Console().print(table(cells))


if __name__ == "__main__":
    typer.run(main)
