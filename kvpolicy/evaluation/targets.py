"""Error targets against the errors that are found on the queries that come later.

    python -m kvpolicy.evaluation.targets [--json] [--model smollm2]

A policy with budget `within` holds the error of each layer under its target, for the last queries
of the prompt. Here the model goes on, with tokens that the policy has not seen, and each layer's
error is measured: ||y - y_full|| / ||y_full||, as in `kvpolicy.evaluation.measures.reconstruction`.

Beds: prompts of the needle model with the question (`visible`: the answer follows) and without it
(`hidden`: question and answer follow); with `--model smollm2` stretches of prose and of code, of
which the next tokens follow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import torch
import typer
from jaxtyping import Int
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from kvpolicy.budget import within
from kvpolicy.composition import recipe
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.fidelity.rows import Estimate
from kvpolicy.evaluation.measures.reconstruction import Recording, record, token_errors
from kvpolicy.evaluation.needle.prompts import QUESTION_LENGTH
from kvpolicy.evaluation.needle.reader import Question
from kvpolicy.evaluation.needle.variants import VARIANT, write
from kvpolicy.evaluation.tasks.stdlib import StandardLibraryTask
from kvpolicy.huggingface.cache_argument import handed

if TYPE_CHECKING:
    from kvpolicy.policy import Policy

RECIPES = "restkv,snapkv,expectedattention,random"
TARGETS = "0.01,0.02,0.05,0.1,0.2"
FOLLOWING = 64
"""How many tokens follow a stretch of text."""
FACTS = {"redundant": 8, "chained": 16}
"""How many facts a prompt of 256 tokens tells, by the variant of its needle model."""


@attrs.frozen(kw_only=True)
class Bed:
    """Prompts of a model with what follows them, as the full cache has it.

    The last `answer` tokens of what follows are an answer; 0 if nothing was asked.
    """

    name: str
    model: Any
    recordings: Sequence[Recording]
    answer: int = 0


@attrs.frozen(kw_only=True)
class Found:
    """One recipe at one target.

    `errors` are those of each prompt, the mean over layers and tokens; `worst` those of its worst
    layer. `kept` is the share of positions held. `within` is the share of prompts and layers whose
    error is within the target.
    """

    bed: str
    recipe: str
    target: float
    errors: tuple[float, ...]
    worst: tuple[float, ...]
    kept: float
    within: float


@torch.no_grad()
def found(bed: Bed, name: str, target: float) -> Found:
    """Measure one recipe at one target on all prompts of a bed."""
    policy = recipe(name, budget=within(target))
    layers = [token_errors(bed.model, policy, each).mean(2) for each in bed.recordings]
    errors = torch.cat(layers, 1)
    return Found(
        bed=bed.name,
        recipe=name,
        target=target,
        errors=tuple(errors.mean(0).tolist()),
        worst=tuple(errors.amax(0).tolist()),
        kept=fmean(_kept(bed.model, policy, each.prompt) for each in bed.recordings),
        within=(errors <= target).double().mean().item(),
    )


def _kept(model: Any, policy: Policy, prompt: Int[Tensor, "B T"]) -> float:
    with policy.cache(model) as cache:
        model.base_model(input_ids=prompt, **handed(cache, to=model.base_model))
        held = [(each >= 0).sum(-1).double().mean() for each in cache.positions]
    return float(torch.stack(held).mean()) / prompt.shape[1]


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
        recordings = []
        for sample in task.samples(tokenizer):
            ids = torch.tensor([tokenizer(sample.context, add_special_tokens=False)["input_ids"]])
            recordings.append(record(model, ids[:, :length], ids[:, length : length + FOLLOWING]))
        yield Bed(name=kind, model=model, recordings=recordings)


def table(rows: Sequence[Found]) -> str:
    """Return a table in Markdown for each bed."""
    lines = ["# Error targets, and the errors found on later queries", ""]
    for bed in dict.fromkeys(row.bed for row in rows):
        mine = [row for row in rows if row.bed == bed]
        lines += [
            f"## {bed} ({len(mine[0].errors)} prompts)",
            "",
            "| recipe | target | error found | worst layer | within the target | positions kept |",
            "|---|---:|---:|---:|---:|---:|",
            *(_line(row) for row in mine),
            "",
        ]
    return "\n".join(lines)


def _line(row: Found) -> str:
    error, worst = Estimate.mean(row.errors), Estimate.mean(row.worst)
    cells = (
        *(row.recipe, f"{row.target:.3g}", f"{error.value:.3f} ± {error.error:.3f}"),
        *(f"{worst.value:.3f} ± {worst.error:.3f}", f"{row.within:.0%}", f"{row.kept:.1%}"),
    )
    return f"| {' | '.join(cells)} |"


def beds(model: str | None, prompts: int, length: int) -> Iterator[Bed]:
    """Yield the beds of the needle model, of the needle model in a folder, or of another one."""
    if model is None or _is_needle(model):
        yield from needle_beds(prompts, Path(model or needle.MODEL))
        return
    from kvpolicy.evaluation.smollm2 import NAME, gguf_file

    file = gguf_file() if model == NAME else None
    yield from text_beds(*_loaded(model, file), prompts, length)


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


def main(
    model: Annotated[str | None, typer.Option(help="Another model, or smollm2.")] = None,
    recipes: Annotated[str, typer.Option(help="Names of recipes.")] = RECIPES,
    targets: Annotated[str, typer.Option(help="Error targets.")] = TARGETS,
    prompts: Annotated[int, typer.Option(min=2, help="Prompts of each bed.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens of a stretch, for another model.")] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Measure each recipe at each target, and print a table for each bed."""
    disable_progress_bar()
    rows = []
    for bed in beds(model, prompts, length):
        for name in recipes.split(","):
            for target in map(float, targets.split(",")):
                rows.append(found(bed, name.strip(), target))
                if as_json:
                    typer.echo(json.dumps(attrs.asdict(rows[-1])))
    if not as_json:
        typer.echo(table(rows))


if __name__ == "__main__":
    typer.run(main)
