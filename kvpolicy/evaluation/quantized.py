"""What quantized storage costs in errors and saves in bytes, for the same eviction.

    python -m kvpolicy.evaluation.quantized [--recipe restkv] [--budget 64] [--prompts 32] [--json]

The needle model reads a prompt, the policy evicts, and the model reads the right answer word by
word. The error is ||y - y'|| / ||y'||, with y the output of an attention block and y' the same
output without quantization, averaged over blocks, words and prompts. A block is given what the
block before it put out, so errors add up as they do in use. "right" counts the prompts that greedy
decoding answers right. "bytes" are those of a prompt's cache after it was read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Annotated, Any

import attrs
import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from kvpolicy import Policy, recipe
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.measures.text import exact_match
from kvpolicy.evaluation.needle.reader import Question, Reader, batches
from kvpolicy.evaluation.recording.listening import blocks_heard
from kvpolicy.huggingface.cache_argument import handed
from kvpolicy.huggingface.report import readable_bytes

Storage = Mapping[str, Any]
BITS = (8, 4)
RESIDUALS = (0, 16, 32)


@attrs.frozen(kw_only=True)
class Figures:
    """What was measured with one storage; None is full precision."""

    storage: Storage | None
    error: float
    right: int
    prompts: int
    nbytes: int

    @property
    def name(self) -> str:
        """The storage in words.

        >>> storage = {"name": "quantized", "bits": 4, "backend": "minmax", "residual": 16}
        >>> Figures(storage=storage, error=0.1, right=2, prompts=2, nbytes=1024).name
        '4 bits, last 16 in full'
        """
        if self.storage is None:
            return "full precision"
        backend = self.storage["backend"]
        by = "" if backend == "minmax" else f" by {backend}"
        return f"{self.storage['bits']} bits{by}, last {self.storage['residual']} in full"


def storages() -> list[Storage | None]:
    """Return full precision, then every quantized storage whose backend is installed."""
    backends = ["minmax", "hqq"] if find_spec("hqq") else ["minmax"]
    quantized: list[Storage] = [
        {"name": "quantized", "bits": bits, "backend": backend, "residual": residual}
        for bits in BITS
        for backend in backends
        for residual in RESIDUALS
    ]
    return [None, *quantized]


def measure(
    reader: Reader, questions: Sequence[Question], policy: Policy, chosen: Sequence[Storage | None]
) -> Iterator[Figures]:
    """Measure each storage on the same questions. The first must be full precision."""
    portions = batches(questions)
    expected: list[Tensor] = []
    for storage in chosen:
        found = [_outputs(reader, batch, policy, storage) for batch in portions]
        outputs = [each for each, _ in found]
        expected = expected or outputs
        errors = [_error(*each) for each in zip(outputs, expected, strict=True)]
        right = [_right(reader, batch, policy, storage) for batch in portions]
        yield Figures(
            storage=storage,
            error=float(torch.cat(errors).mean()),
            right=sum(right),
            prompts=len(questions),
            nbytes=sum(nbytes for _, nbytes in found) // len(questions),
        )


@torch.no_grad()
def _outputs(
    reader: Reader, questions: Sequence[Question], policy: Policy, storage: Storage | None
) -> tuple[Tensor, int]:
    """Return the outputs of the attention blocks for the answers' words, and the cache's bytes."""
    model: Any = reader.model
    answers = [question.answer for question in questions]
    ids: Any = reader.tokenizer(answers, add_special_tokens=False, return_tensors="pt")["input_ids"]
    blocks = [layer.self_attn for layer in model.model.layers]
    outputs: list[Tensor] = []
    with policy.cache(model, storage=storage) as cache:
        model(input_ids=reader.encode(questions), **handed(cache, to=model), logits_to_keep=1)
        nbytes = cache.nbytes
        with blocks_heard(blocks, lambda number, given, out: outputs.append(out)):
            for word in ids.split(1, 1):
                model(input_ids=word, **handed(cache, to=model))
    return torch.stack(outputs).transpose(0, 1), nbytes


@torch.no_grad()
def _error(outputs: Tensor, expected: Tensor) -> Tensor:
    """Return the mean relative error of each prompt."""
    errors: Tensor = (outputs - expected).norm(dim=-1) / expected.norm(dim=-1)
    return errors.mean((1, 2))


@torch.no_grad()
def _right(
    reader: Reader, questions: Sequence[Question], policy: Policy, storage: Storage | None
) -> int:
    with policy.cache(reader.model, storage=storage) as cache:
        answers = reader.answer(questions, cache)
    return sum(map(exact_match, answers, [question.answer for question in questions]))


def table(found: Sequence[Figures], title: str) -> Table:
    """Return the figures as a table."""
    full, made = found[0], Table(title=title, box=box.SIMPLE)
    for head in ("storage", "error", "right", "bytes", "of full precision"):
        made.add_column(head, justify="left" if head == "storage" else "right", no_wrap=True)
    for each in found:
        made.add_row(
            each.name,
            f"{each.error:.2%}",
            f"{each.right}/{each.prompts}",
            readable_bytes(each.nbytes),
            f"{each.nbytes / full.nbytes:.1%}",
        )
    return made


def main(
    name: Annotated[str, typer.Option("--recipe", help="Which recipe evicts.")] = "restkv",
    budget: Annotated[int, typer.Option(help="Positions for each head.")] = 64,
    tokens: Annotated[int, typer.Option(help="Length of each prompt.")] = 512,
    facts: Annotated[int, typer.Option(min=1, help="Facts in each prompt.")] = 32,
    prompts: Annotated[int, typer.Option(min=1, help="How many prompts.")] = 32,
    seed: Annotated[int, typer.Option(help="Another seed writes other prompts.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Measure all storages, and print a table."""
    disable_progress_bar()
    reader = Reader(*needle.load())
    questions = needle.generate_prompts(tokens=tokens, facts=facts, count=prompts, seed=seed)
    found = list(measure(reader, questions, recipe(name, budget=budget), storages()))
    if as_json:
        for each in found:
            typer.echo(json.dumps(attrs.asdict(each)))
        return
    title = f"{name} at {budget} of {tokens} positions, {prompts} prompts"
    Console().print(table(found, title))


if __name__ == "__main__":
    typer.run(main)
