"""Trains a needle model from random weights. Without options it repeats the run that ships.

python examples/needle-model/train.py [--variant redundant] [--seed 0] [--output FOLDER]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import TextIO

import attrs
import torch
from batches import Batch, documents, repeated_words
from model import DESIGNS, build_model
from orthogonal import OrthogonalMomentum
from tokenizer import build_tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from kvpolicy.evaluation.needle import MODEL
from kvpolicy.evaluation.needle.variants import VARIANT, VARIANTS

HERE = Path(__file__).parent
LOG = "train.log.jsonl"
THREADS = 2
LONGEST = DESIGNS["single"].longest

MATRIX_RATE, VECTOR_RATE, WEIGHT_DECAY = 4e-3, 5e-4, 0.01
BETAS = (0.9, 0.95)
CLIP = 0.5
WARMUP_STEPS = 100
COOLDOWN = 0.2  # the last fifth of the steps
LAST_RATE = 0.02  # share of the learning rate at the last step
FILLER_WEIGHT = 0.1
LOG_EVERY = 25


@attrs.frozen
class Stage:
    """A number of steps on batches of one kind."""

    name: str
    steps: int
    write: Callable[[Random], Batch]


STAGES = (
    Stage("copy", 300, partial(repeated_words, tokens=64, count=32)),
    Stage("128", 100, partial(documents, tokens=128, count=32, farthest=128)),
    Stage("256", 400, partial(documents, tokens=256, count=16, farthest=LONGEST)),
    Stage("512", 500, partial(documents, tokens=512, count=8, farthest=LONGEST)),
    Stage("1024", 200, partial(documents, tokens=1024, count=4, farthest=LONGEST)),
    Stage("2048", 300, partial(documents, tokens=2048, count=2, farthest=LONGEST)),
)


def _short_stages(
    variant: str, *, batch: int, copies: int, steps: Mapping[int, int]
) -> tuple[Stage, ...]:
    """Return stages up to 512 tokens, with `batch` x 128 tokens in each step.

    `steps` says how many, by length of the documents.
    """
    write = partial(documents, variant=VARIANTS[variant], farthest=DESIGNS[variant].longest)
    return (
        Stage("copy", copies, partial(repeated_words, tokens=64, count=2 * batch)),
        *(
            Stage(str(tokens), count, partial(write, tokens=tokens, count=batch * 128 // tokens))
            for tokens, count in steps.items()
        ),
    )


PLANS: Mapping[str, Sequence[Stage]] = {
    "single": STAGES,
    "redundant": _short_stages(
        "redundant", batch=16, copies=300, steps={128: 300, 256: 300, 512: 200}
    ),
    "chained": _short_stages("chained", batch=8, copies=200, steps={128: 300, 256: 250}),
}
"""The stages of each variant's training."""


def main() -> None:
    """Train, and write the model, its tokenizer and the log."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model = build_model(options.variant)
    options.output.mkdir(parents=True, exist_ok=True)
    with options.log.open("w", encoding="utf-8") as log:
        train(model, Random(options.seed), log, PLANS[options.variant])
    disable_progress_bar()
    if options.variant != "single":
        model.half()
    model.save_pretrained(options.output)
    # transformers lets only the owner read the weights, and a wheel keeps such rights.
    (options.output / "model.safetensors").chmod(0o644)
    build_tokenizer(DESIGNS[options.variant].longest).save_pretrained(options.output)


def train(model: PreTrainedModel, rng: Random, log: TextIO, stages: Sequence[Stage]) -> None:
    """Take all steps of all stages, and log one of each `LOG_EVERY`."""
    steps = sum(stage.steps for stage in stages)
    optimizers = _optimizers(model)
    schedules = [LambdaLR(optimizer, partial(_rate, steps=steps)) for optimizer in optimizers]
    start = time.perf_counter()
    for step, (stage, batch) in enumerate(_batches(rng, stages), start=1):
        recalled, filler, right = _losses(model, batch)
        (recalled + FILLER_WEIGHT * filler).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad()
        if step % LOG_EVERY == 0 or step == steps:
            entry = {
                "step": step,
                "stage": stage,
                "recall_loss": round(recalled.item(), 4),
                "filler_loss": round(filler.item(), 4),
                "recalled": round(right.item(), 4),
                "seconds": round(time.perf_counter() - start),
            }
            print(json.dumps(entry), file=log, flush=True)
            print(json.dumps(entry), flush=True)


def _batches(rng: Random, stages: Sequence[Stage]) -> Iterator[tuple[str, Batch]]:
    for stage in stages:
        for _ in range(stage.steps):
            yield stage.name, stage.write(rng)


def _losses(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of the tokens to recall, that of the others, and the share recalled right."""
    logits = model(
        input_ids=batch.ids,
        position_ids=batch.positions,
        # Without a mask, transformers takes a jump for the border between packed sequences.
        attention_mask=torch.ones_like(batch.ids),
        use_cache=False,
    ).logits[:, :-1]
    targets, recalled = batch.ids[:, 1:], batch.recalled[:, 1:]
    losses = cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    right = (logits.argmax(-1) == targets)[recalled].float()
    return losses[recalled].mean(), losses[~recalled].mean(), right.mean()


def _optimizers(model: PreTrainedModel) -> list[Optimizer]:
    """Return Muon for the matrices of the layers, and AdamW for embeddings, norms and biases."""
    layers = list(model.model.layers.parameters())
    matrices = [weight for weight in layers if weight.ndim == 2]
    others = [weight for weight in layers if weight.ndim == 1]
    others += [model.model.embed_tokens.weight, model.model.norm.weight]
    if hasattr(model.config, VARIANT):
        muon: Optimizer = OrthogonalMomentum(matrices, lr=MATRIX_RATE, weight_decay=WEIGHT_DECAY)
    else:  # The run that ships was PyTorch's.
        muon = Muon(
            matrices, lr=MATRIX_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
        )
    return [muon, AdamW(others, lr=VECTOR_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)]


def _rate(step: int, *, steps: int) -> float:
    """Return the share of the learning rate at a step: it rises, stays, and falls at the end."""
    fall = (steps - step) / (COOLDOWN * steps)
    return min(1.0, (step + 1) / WARMUP_STEPS, max(LAST_RATE, fall))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=PLANS, default="single", help="the task and its model")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the documents")
    parser.add_argument("--output", type=Path, help="the folder of the model")
    parser.add_argument("--log", type=Path, help="where the losses go, as JSON lines")
    parser.add_argument("--threads", type=int, default=THREADS, help="of PyTorch")
    options = parser.parse_args()
    single = options.variant == "single"
    options.output = options.output or (MODEL if single else HERE / options.variant)
    options.log = options.log or (HERE if single else options.output) / LOG
    return options


if __name__ == "__main__":
    main()
