"""`kvpolicy memory`: how many bytes a cache will take, from the config of a model alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import attrs
import typer

from kvpolicy.commands.chosen import FULL, chosen
from kvpolicy.commands.stdout import plugins_print_to_stderr
from kvpolicy.errors import InvalidValueError, shown

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from kvpolicy.huggingface.size import CacheSize, ModelShape

UNITS = {"k": 2**10, "m": 2**20}

app = typer.Typer(add_completion=False)


@app.command()
def memory(
    model: Annotated[
        str,
        typer.Option(help="A config.json or its folder, the id of a model on the Hub, or needle."),
    ],
    tokens: Annotated[str, typer.Option(help="How long the prompt is: 8192, 128k, 1M.")],
    recipe: Annotated[
        str | None, typer.Option(help="See `kvpolicy list recipe`; none is the full cache.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="In place of a recipe: a JSON file of a policy.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Positions per head (1024), or a share of the prompt (25%).")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="As in `kvpolicy generate`."),
    ] = None,
    storage: Annotated[str | None, typer.Option(help="See `kvpolicy list storage`.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="How many prompts at once.")] = 1,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="The dtype of keys and values; auto is that of the checkpoint."),
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Compute the memory of a cache from a model's config. No weights are loaded.

    Activations are not counted, and neither are the tokens that are generated.
    """
    import torch

    from kvpolicy.huggingface.size import cache_size, model_shape
    from kvpolicy.named import resolved

    with plugins_print_to_stderr():
        choice = chosen(
            recipe=FULL if recipe is None and policy is None else recipe,
            file=policy,
            budget=budget,
            changes=changes or [],
            storage=storage,
        )
        count = read_tokens(tokens)
    config = _config(model)
    named = (getattr(config, "dtype", None) or torch.float32) if dtype == "auto" else dtype
    shape = model_shape(config, getattr(torch, named) if isinstance(named, str) else named)
    kept = choice.extras.get("storage")
    size = cache_size(
        shape,
        choice.policy,
        count,
        batch=batch,
        storage=None if kept is None else resolved("storage", kept).part,
    )
    if as_json:
        typer.echo(json.dumps(_data(shape, size), indent=2))
    else:
        typer.echo(described(shape, size, repr(choice.policy) if choice.policy else "none"))


def read_tokens(text: str) -> int:
    """Read a number of tokens.

    >>> read_tokens("8192"), read_tokens("128k"), read_tokens("1M")
    (8192, 131072, 1048576)

    Raises InvalidValueError for anything else, and for less than one.
    """
    figure, unit = text.strip().lower(), 1
    if figure[-1:] in UNITS:
        figure, unit = figure[:-1], UNITS[figure[-1]]
    if not (figure.isascii() and figure.isdigit() and 0 < len(figure) < 12 and int(figure)):
        raise InvalidValueError(
            f"--tokens must be a number such as 8192 or 128k, not {shown(text)}."
        )
    return int(figure) * unit


def _config(name: str) -> PreTrainedConfig:
    """Read a config, or say in one sentence why that is not possible."""
    from transformers import AutoConfig

    from kvpolicy.commands.checkpoints import Checkpoint

    file = Path(name).expanduser()
    address = str(file) if file.is_file() else Checkpoint(name=name).address
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(address)
    except (OSError, ValueError) as error:
        raise InvalidValueError(f"could not read the config of {shown(name)}: {error}") from error
    return config


def _data(shape: ModelShape, size: CacheSize) -> dict[str, Any]:
    return {
        "model": shape.name,
        "layers": len(shape.layers),
        "weight_nbytes": shape.weight_nbytes,
    } | attrs.asdict(size)


def described(shape: ModelShape, size: CacheSize, policy: str) -> str:
    """Return the sizes in a few lines."""
    from kvpolicy.huggingface.report import readable_bytes

    evicting = [each for each in shape.layers if each.window is None]
    kinds = {f"{each.heads} key/value heads of {each.key_dim} in {each.dtype}" for each in evicting}
    sliding = len(shape.layers) - len(evicting)
    windows = f", {sliding} of them with a sliding window" if sliding else ""
    share = f"{size.nbytes / size.full:.1%}".replace("%", " %")
    return "\n".join(
        [
            f"model    {shape.name}: {len(shape.layers)} layers{windows}",
            f"heads    {'; '.join(sorted(kinds))}",
            f"weights  {readable_bytes(shape.weight_nbytes)}",
            f"full     {readable_bytes(size.full)} for {size.tokens:,} tokens",
            f"policy   {policy}",
            f"kept     {readable_bytes(size.nbytes)} ({share}): {size.held:,} positions in each of "
            f"{len(evicting)} layers",
            f"reading  {readable_bytes(size.reading)} at most, while the prompt is read",
        ]
    )
