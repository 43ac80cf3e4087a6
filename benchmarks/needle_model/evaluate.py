"""Counts the questions that the needle model answers with the full cache, word for word."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvpolicy.evaluation.metrics import exact_match, wilson_interval
from kvpolicy.evaluation.needle import MODEL, NeedlePrompt, generate_prompts, load
from kvpolicy.evaluation.needle.prompts import CODE_LENGTH

LENGTHS = (512, 1024, 2048)
FACTS = (8, 16, 32, 64)
BATCH_TOKENS = 16_384


@attrs.frozen(kw_only=True)
class Cell:
    """How many prompts of one length, with so many facts, were answered exactly."""

    tokens: int
    facts: int
    prompts: int
    correct: int

    def as_dict(self) -> dict[str, Any]:
        """Return the counts, the share and its 95 % Wilson interval."""
        low, high = wilson_interval(self.correct, self.prompts)
        return attrs.asdict(self) | {
            "exact": round(self.correct / self.prompts, 4),
            "low": round(low, 4),
            "high": round(high, 4),
        }


def main() -> None:
    """Measure every length with every number of facts, and print them."""
    options = _options()
    model, tokenizer = load(options.model)
    cells = []
    for tokens in options.tokens:
        for facts in options.facts:
            prompts = generate_prompts(
                tokens=tokens, facts=facts, count=options.prompts, seed=options.seed
            )
            correct = count_correct(model, tokenizer, prompts, tokens)
            cells.append(Cell(tokens=tokens, facts=facts, prompts=len(prompts), correct=correct))
            if options.json:
                print(json.dumps(cells[-1].as_dict()), flush=True)
    if not options.json:
        Console().print(_table(cells))


def count_correct(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[NeedlePrompt],
    tokens: int,
) -> int:
    """Let the model answer by greedy decoding, in batches, and count the exact answers."""
    size = max(1, BATCH_TOKENS // tokens)
    chunks = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    return sum(
        exact_match(answer, prompt.answer)
        for chunk in chunks
        for answer, prompt in zip(_answers(model, tokenizer, chunk), chunk, strict=True)
    )


@torch.inference_mode()
def _answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[NeedlePrompt]
) -> list[str]:
    inputs = tokenizer([prompt.text for prompt in prompts], return_tensors="pt")
    # Room for one token more than the answer: the end of text, or a word too many.
    said = model.generate(**inputs, max_new_tokens=CODE_LENGTH + 1, do_sample=False)
    return tokenizer.batch_decode(said[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _table(cells: Sequence[Cell]) -> Table:
    table = Table(title="Exact answers with the full cache (95 % Wilson interval)")
    for name in ("tokens", "facts", "prompts", "correct", "exact", "interval"):
        table.add_column(name, justify="right")
    for cell in cells:
        found = cell.as_dict()
        interval = f"{found['low']:.1%} to {found['high']:.1%}"
        counts = map(str, (cell.tokens, cell.facts, cell.prompts, cell.correct))
        table.add_row(*counts, f"{found['exact']:.1%}", interval)
    return table


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--facts", type=int, nargs="+", default=FACTS)
    parser.add_argument("--prompts", type=int, default=200, help="of each length and facts")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--model", type=Path, default=MODEL, help="the folder of the model")
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
