"""What quantised storage costs and saves, beside the same eviction in full precision.

    python -m benchmarks.quantized [--recipe restkv] [--budget 64] [--prompts 32] [--rows FILE]

On the needle model: a prompt is evicted, and the right answer read word by word. The error is
||y - y'|| / ||y'|| of what each attention block puts out, where y' is that of the same eviction
unquantised, averaged over layers, words and prompts; later blocks are given what earlier ones put
out, so that errors add up as they do in use. "right" are the answers that greedy decoding gets
right. Bytes are those of a prompt's cache after it was read, positions and slack included.

Prints JSON lines (see `benchmarks.rows`), then a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import attrs
import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from benchmarks.rows import Row, machine, versions, write
from kvpolicy import Policy, recipe
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.comparison import batches
from kvpolicy.evaluation.listening import blocks_heard
from kvpolicy.evaluation.metrics import exact_match
from kvpolicy.evaluation.reader import Question, Reader
from kvpolicy.huggingface.report import readable_bytes

Storage = Mapping[str, Any]
BITS = (8, 4)
RESIDUALS = (0, 16, 32)


@attrs.frozen(kw_only=True)
class Figures:
    """What one storage came to; None is full precision."""

    storage: Storage | None
    error: float
    right: int
    prompts: int
    nbytes: int

    @property
    def name(self) -> str:
        """The storage in words."""
        if self.storage is None:
            return "full precision"
        by = "" if self.storage["backend"] == "minmax" else " by {backend}"
        return f"{{bits}} bits{by}, last {{residual}} in full".format(**self.storage)


def storages() -> list[Storage | None]:
    """Return full precision first, and hqq where it is installed."""
    backends = ["minmax", "hqq"] if find_spec("hqq") else ["minmax"]
    quantized = [
        {"name": "quantized", "bits": bits, "backend": backend, "residual": residual}
        for bits in BITS
        for backend in backends
        for residual in RESIDUALS
    ]
    return [None, *quantized]


@torch.no_grad()
def measure(
    reader: Reader, questions: Sequence[Question], policy: Policy, chosen: Sequence[Storage | None]
) -> Iterator[Figures]:
    """Measure each storage on the same questions; the first must be full precision."""
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


def _outputs(
    reader: Reader, questions: Sequence[Question], policy: Policy, storage: Storage | None
) -> tuple[Tensor, int]:
    """Return what attention blocks put out for the words of the answer, and the cache's bytes."""
    model: Any = reader.model
    answers = [question.answer for question in questions]
    words = reader.tokenizer(answers, add_special_tokens=False, return_tensors="pt")["input_ids"]
    blocks, outputs = [layer.self_attn for layer in model.model.layers], []
    with policy.cache(model, storage=storage) as cache:
        model(input_ids=reader.encode(questions), past_key_values=cache, logits_to_keep=1)
        nbytes = cache.nbytes
        with blocks_heard(blocks, lambda number, given, out: outputs.append(out)):
            for word in words.split(1, 1):
                model(input_ids=word, past_key_values=cache)
    return torch.stack(outputs).transpose(0, 1), nbytes


def _error(outputs: Tensor, expected: Tensor) -> Tensor:
    """Return the mean relative error of each prompt."""
    return ((outputs - expected).norm(dim=-1) / expected.norm(dim=-1)).mean((1, 2))


def _right(
    reader: Reader, questions: Sequence[Question], policy: Policy, storage: Storage | None
) -> int:
    with policy.cache(reader.model, storage=storage) as cache:
        said = reader.answer(questions, cache)
    return sum(map(exact_match, said, [question.answer for question in questions]))


def rows_of(found: Sequence[Figures], settings: Mapping[str, Any]) -> Iterator[Row]:
    """Give three rows for each storage."""
    common = {
        "benchmark": "quantized",
        "device": "cpu",
        "machine": machine(),
        "dtype": "float32",
        "versions": versions(),
    }
    for each in found:
        about = {"variant": each.name, "settings": {**settings, "storage": each.storage}}
        yield Row(name="attention output error", value=each.error, unit="ratio", **about, **common)
        yield Row(name="right", value=each.right / each.prompts, unit="share", **about, **common)
        yield Row(name="cache", value=each.nbytes / 2**20, unit="MiB", **about, **common)


def table(found: Sequence[Figures], title: str) -> Table:
    """Return the figures for people."""
    full, shown = found[0], Table(title=title, box=box.SIMPLE)
    for head in ("storage", "error", "right", "bytes", "of full precision"):
        shown.add_column(head, justify="left" if head == "storage" else "right", no_wrap=True)
    for each in found:
        shown.add_row(
            each.name,
            f"{each.error:.2%}",
            f"{each.right}/{each.prompts}",
            readable_bytes(each.nbytes),
            f"{each.nbytes / full.nbytes:.1%}",
        )
    return shown


def main(
    name: Annotated[str, typer.Option("--recipe", help="Which recipe evicts.")] = "restkv",
    budget: Annotated[int, typer.Option(help="Positions per head.")] = 64,
    tokens: Annotated[int, typer.Option(help="Length of every prompt.")] = 512,
    facts: Annotated[int, typer.Option(min=1, help="Facts told in every prompt.")] = 32,
    prompts: Annotated[int, typer.Option(min=1, help="How many prompts.")] = 32,
    seed: Annotated[int, typer.Option(help="Another seed writes other prompts.")] = 0,
    path: Annotated[Path | None, typer.Option("--rows", help="Add the rows to a file.")] = None,
) -> None:
    """Measure all storages, and print rows and a table."""
    disable_progress_bar()
    reader = Reader(*needle.load())
    questions = needle.generate_prompts(tokens=tokens, facts=facts, count=prompts, seed=seed)
    found = list(measure(reader, questions, recipe(name, budget=budget), storages()))
    settings = {"recipe": name, "budget": budget, "tokens": tokens, "facts": facts, "seed": seed}
    rows = list(rows_of(found, settings | {"prompts": prompts}))
    for row in rows:
        typer.echo(row.to_json())
    if path is not None:
        write(path, rows)
    Console().print(table(found, f"{name} at {budget} of {tokens} positions, {prompts} prompts"))


if __name__ == "__main__":
    typer.run(main)
