"""The beds of a model: needle prompts, with the question visible and hidden, or prose and code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from kvpolicy.evaluation import needle
from kvpolicy.evaluation.beds.bed import Bed
from kvpolicy.evaluation.measures.reconstruction import record
from kvpolicy.evaluation.needle.prompts import QUESTION_LENGTH
from kvpolicy.evaluation.needle.reader import Question
from kvpolicy.evaluation.needle.variants import VARIANT, write
from kvpolicy.evaluation.smollm2 import NAME, gguf_file
from kvpolicy.evaluation.tasks.stdlib import StandardLibraryTask

FOLLOWING = 64
"""How many tokens follow a stretch of text."""
TOKENS = 8192
"""So many tokens of stretches are read at a time."""
FACTS = {"redundant": 8, "chained": 16}
"""How many facts a prompt of 256 tokens tells, by the variant of its needle model."""


def beds(model: str | None, prompts: int, length: int) -> Iterator[Bed]:
    """Yield the beds of the needle model, of the needle model in a folder, or of another one."""
    if model is None or _is_needle(model):
        yield from needle_beds(prompts, Path(model or needle.MODEL))
    else:
        file = gguf_file() if model == NAME else None
        yield from text_beds(*_loaded(model, file), prompts, length)


def needle_beds(prompts: int, folder: Path = needle.MODEL) -> Iterator[Bed]:
    """Yield a needle model's prompts, with the question visible and hidden.

    Another folder holds a model of another variant (`kvpolicy.evaluation.needle.variants`).
    """
    model, tokenizer = needle.load(folder)
    variant = getattr(model.config, VARIANT, None)
    asked = _asked(variant, prompts)
    ids = torch.as_tensor(tokenizer([each.text for each in asked])["input_ids"])
    answers = [each.answer for each in asked]
    answer = torch.as_tensor(tokenizer(answers, add_special_tokens=False)["input_ids"])
    whole = torch.cat([ids, answer], 1)
    for name, question in (("visible", 0), ("hidden", QUESTION_LENGTH)):
        split = ids.shape[1] - question
        recordings = [record(model, each[:, :split], each[:, split:]) for each in whole.split(8)]
        title = f"{variant or needle.NAME}, {name}"
        yield Bed(name=title, model=model, recordings=recordings, answer=answer.shape[1])


def _asked(variant: str | None, prompts: int) -> Sequence[Question]:
    if variant is None:
        return needle.generate_prompts(tokens=512, facts=32, count=prompts, seed=2)
    return write(variant, tokens=256, facts=FACTS[variant], count=prompts, seed=2)


def text_beds(model: Any, tokenizer: Any, stretches: int, length: int) -> Iterator[Bed]:
    """Yield stretches of prose and of code of `length` tokens."""
    for kind in ("prose", "code"):
        task = StandardLibraryTask(kind=kind, length=length + FOLLOWING, num_samples=stretches)
        texts = [sample.context for sample in task.samples(tokenizer)]
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        whole = torch.tensor([each[: length + FOLLOWING] for each in ids])
        # A portion holds the queries, keys and values of its stretches: fewer of them if longer.
        portions = whole.split(max(1, TOKENS // length))
        recordings = [record(model, each[:, :length], each[:, length:]) for each in portions]
        yield Bed(name=kind, model=model, recordings=recordings)


def _is_needle(model: str) -> bool:
    file = Path(model) / "config.json"
    return file.is_file() and VARIANT in json.loads(file.read_text("utf-8"))


def _loaded(model: str, file: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    address = model if file is None else str(file.parent)
    options = {} if file is None else {"gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(address, **options)
    loaded = AutoModelForCausalLM.from_pretrained(address, dtype=torch.float32, **options)
    return loaded.eval(), tokenizer
