"""`kvpolicy tune`: searches the best policy for one's own prompts at given bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from kvpolicy.budget import read_budget
from kvpolicy.commands.options import Attention, Device, Dtype, Model, TrustRemoteCode
from kvpolicy.commands.recipes import read_recipes
from kvpolicy.commands.writing import check_file, write

app = typer.Typer(add_completion=False)


@app.command()
def tune(
    model: Model,
    data: Annotated[Path, typer.Option(help="Your own samples, a JSON object a line.")],
    size: Annotated[
        str, typer.Option("--bytes", help="Share of the full cache (10%), or positions (128).")
    ],
    trials: Annotated[
        int, typer.Option(min=1, help="How many policies are tried, earlier ones included.")
    ] = 60,
    study: Annotated[
        Path, typer.Option(help="Keep the search here, and go on from what is there.")
    ] = Path("kvpolicy-tune.journal"),
    output: Annotated[Path, typer.Option(help="Write the policy here, as JSON.")] = Path(
        "kvpolicy-tuned.json"
    ),
    recipes: Annotated[
        str, typer.Option(help="Recipes that the tuned policy is compared with.")
    ] = "restkv,snapkv,random",
    metric: Annotated[str | None, typer.Option(help="f1, contains, exact_match ...")] = None,
    question: Annotated[
        Literal["inside", "outside"],
        typer.Option(help="Evict context and question, or ask after the context was evicted."),
    ] = "inside",
    held_out: Annotated[float, typer.Option(help="Share of the samples that is put aside.")] = 0.5,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where samples set no limit.")] = 32,
    seed: Annotated[int, typer.Option(help="Another seed splits and searches otherwise.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attention: Attention = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Search the best policy for your own prompts at given bytes.

    Recipes, options and allocations are searched by reconstruction error first, by answers second.
    The table has the error on prompts that were
    held out. The same command goes on where it stopped.
    """
    from rich.console import Console

    from kvpolicy.commands.checkpoints import Checkpoint
    from kvpolicy.evaluation import tuning

    budget, names = read_budget(size), read_recipes(recipes)
    check_file("--study", study)
    check_file("--output", output)
    checkpoint = Checkpoint(
        name=model,
        dtype=dtype,
        device=device,
        attention=attention,
        trust_remote_code=trust_remote_code,
    )
    with Console(stderr=True).status("") as status:
        found = tuning.tune(
            checkpoint.model(),
            checkpoint.tokenizer(),
            data=data,
            budget=budget,
            trials=trials,
            study=study,
            recipes=names,
            metric=metric,
            question=question,
            held_out=held_out,
            max_new_tokens=max_new_tokens,
            seed=seed,
            on_trial=lambda done: status.update(f"{done} of {trials} trials"),
        )
    write(output, json.dumps(found.policy.to_dict(), indent=2) + "\n")
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else str(found))
    typer.echo(f"Policy: {output}", err=as_json)
