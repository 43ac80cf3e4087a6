"""Error targets against the errors that are found on the queries that come later.

    python -m kvpolicy.evaluation.targets [--json] [--model smollm2] [--model ANOTHER]

A policy with budget `within` holds the error of each layer under its target, for the last queries
of the prompt. Here the model goes on, with tokens that the policy has not seen, and each layer's
error is measured: ||y - y_full|| / ||y_full||, as in `kvpolicy.evaluation.measures.reconstruction`.

The beds are those of `kvpolicy.evaluation.beds`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import attrs
import torch
import typer
from jaxtyping import Int
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from kvpolicy.budget import within
from kvpolicy.composition import recipe
from kvpolicy.evaluation import needle
from kvpolicy.evaluation.beds.bed import Bed
from kvpolicy.evaluation.beds.prompts import beds
from kvpolicy.evaluation.fidelity.rows import Estimate
from kvpolicy.evaluation.measures.reconstruction import token_errors
from kvpolicy.evaluation.recording.read_once import ReadOnce

if TYPE_CHECKING:
    from kvpolicy.policy import Policy

RECIPES = "restkv,snapkv,expectedattention,random"
TARGETS = "0.01,0.02,0.05,0.1,0.2"


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
    pairs = list(zip(bed.recordings, bed.readers, strict=True))
    layers = [
        token_errors(bed.model, policy, each, reader=reader).mean(2) for each, reader in pairs
    ]
    errors = torch.cat(layers, 1)
    return Found(
        bed=bed.name,
        recipe=name,
        target=target,
        errors=tuple(errors.mean(0).tolist()),
        worst=tuple(errors.amax(0).tolist()),
        kept=fmean(_kept(policy, each.prompt, reader) for each, reader in pairs),
        within=(errors <= target).double().mean().item(),
    )


def _kept(policy: Policy, prompt: Int[Tensor, "B T"], reader: ReadOnce) -> float:
    with policy.cache(reader.model) as cache:
        reader.read(cache, prompt)
        held = [(each >= 0).sum(-1).double().mean() for each in cache.positions]
    return float(torch.stack(held).mean()) / prompt.shape[1]


def table(rows: Sequence[Found], options: str = "") -> str:
    """Return a table in Markdown for each bed.

    `options` are those of the command that prints it.
    """
    lines = [
        "# Error targets, and the errors found on later queries",
        "",
        "An error target holds for the last queries of a prompt. Each error here is that of "
        "queries that come later, ± its standard error over prompts: the mean over layers, and "
        "that of the worst layer. 'Within the target' is the share of prompts and layers whose "
        "error is. This prints the tables:",
        "",
        f"    python -m kvpolicy.evaluation.targets {options}".rstrip(),
        "",
    ]
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
    return "\n".join(lines).rstrip()


def _line(row: Found) -> str:
    error, worst = Estimate.mean(row.errors), Estimate.mean(row.worst)
    cells = (
        *(row.recipe, f"{row.target:.3g}", f"{error.value:.3f} ± {error.error:.3f}"),
        *(f"{worst.value:.3f} ± {worst.error:.3f}", f"{row.within:.0%}", f"{row.kept:.1%}"),
    )
    return f"| {' | '.join(cells)} |"


def main(
    model: Annotated[
        list[str] | None, typer.Option(help="Models, folders of needle models, or smollm2.")
    ] = None,
    recipes: Annotated[str, typer.Option(help="Names of recipes.")] = RECIPES,
    targets: Annotated[str, typer.Option(help="Error targets.")] = TARGETS,
    prompts: Annotated[int, typer.Option(min=2, help="Prompts of each bed.")] = 16,
    length: Annotated[
        int, typer.Option(min=64, help="Tokens of a stretch, for another model.")
    ] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Measure each recipe at each target, and print a table for each bed."""
    disable_progress_bar()
    rows = []
    for each in model or [needle.NAME]:
        for bed in beds(None if each == needle.NAME else each, prompts, length):
            for name in recipes.split(","):
                for target in map(float, targets.split(",")):
                    rows.append(found(bed, name.strip(), target))
                    if as_json:
                        typer.echo(json.dumps(attrs.asdict(rows[-1])))
    if not as_json:
        given = [("model", each) for each in model or []]
        given += [("recipes", recipes), ("targets", targets), ("prompts", str(prompts))]
        typer.echo(table(rows, shlex.join(f"--{name}={value}" for name, value in given)))


if __name__ == "__main__":
    typer.run(main)
