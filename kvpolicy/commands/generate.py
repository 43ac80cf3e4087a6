"""`kvpolicy generate`: continues a prompt with a Hugging Face model and an evicted cache."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvpolicy.budget import read_budget
from kvpolicy.commands.options import (
    Attention,
    Chat,
    Device,
    Dtype,
    Model,
    PromptFile,
    TrustRemoteCode,
)
from kvpolicy.commands.stdout import plugins_print_to_stderr
from kvpolicy.composition import recipe as build_recipe
from kvpolicy.errors import InvalidValueError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from kvpolicy.policy import Policy

FULL = "none"
COLDEST = 1e-3
"""The smallest temperature above 0. Logits divided by less would overflow."""

app = typer.Typer(add_completion=False)


@app.command()
def generate(
    model: Model,
    recipe: Annotated[
        str, typer.Option(help="See `kvpolicy list recipe`; none keeps the full cache.")
    ],
    budget: Annotated[
        str, typer.Option(help="Positions per head (1024), or a share of the prompt (25%).")
    ] = "1024",
    prefill: Annotated[
        str | None,
        typer.Option(help="Read a long prompt sparsely; see `kvpolicy list prefill_pattern`."),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="How to keep the cache between forwards; see `kvpolicy list storage`."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The text that the model continues.")] = None,
    prompt_file: PromptFile = None,
    chat: Chat = False,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Stop after this many new tokens.")
    ] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, help="Sampling temperature; 0 takes the most likely token.")
    ] = 0,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Makes sampling repeatable.")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attention: Attention = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Continue a prompt with a cache that a recipe keeps within a budget.

    Writes the text to standard output, and a report of the cache to standard error.
    """
    from kvpolicy.commands.checkpoints import Checkpoint
    from kvpolicy.commands.prompts import encoded, read_prompt

    with plugins_print_to_stderr():
        policy = None if recipe == FULL else build_recipe(recipe, budget=read_budget(budget))
        extras = _checked_extras(policy, prefill_pattern=prefill, storage=storage)
    text = read_prompt(prompt, prompt_file)
    checkpoint = Checkpoint(
        name=model,
        dtype=dtype,
        device=device,
        attention=attention,
        trust_remote_code=trust_remote_code,
    )
    tokenizer = checkpoint.tokenizer()
    tokens = encoded(tokenizer, text, chat=chat)
    sampling = _sampling(temperature, seed) | {"max_new_tokens": max_new_tokens}
    _stream(checkpoint.model(), tokenizer, tokens, policy, extras, sampling)


def _checked_extras(policy: Policy | None, **given: str | None) -> dict[str, str]:
    """Return the prefill pattern and the storage that are given, by argument of `policy.cache`.

    Raises before anything is loaded if one does not exist or if there is no recipe.
    """
    from kvpolicy.kinds import KINDS
    from kvpolicy.named import resolved

    extras = {}
    for kind, value in given.items():
        argument = KINDS[kind].argument
        if value is None or argument is None:
            continue
        resolved(kind, value)
        if policy is None:
            raise InvalidValueError(
                f"--{argument} {value} needs a recipe. With --recipe {FULL} transformers provides "
                "the cache and the attention."
            )
        extras[argument] = value
    return extras


def _sampling(temperature: float, seed: int | None) -> dict[str, Any]:
    """Return the sampling arguments of `generate`, which override those of the checkpoint."""
    from transformers import set_seed

    if seed is not None:
        set_seed(seed)
    if not (temperature == 0 or COLDEST <= temperature < math.inf):
        raise InvalidValueError(
            f"--temperature must be 0 or at least {COLDEST}, but is {temperature}. 0 always takes "
            "the most likely token."
        )
    if temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": temperature}


def _stream(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    tokens: dict[str, Tensor],
    policy: Policy | None,
    extras: dict[str, str],
    sampling: dict[str, Any],
) -> None:
    """Write the text while it is generated, then report what the cache holds."""
    from rich.console import Console
    from transformers import TextStreamer

    from kvpolicy.commands.holdings import holdings
    from kvpolicy.commands.prefill import prefill_progress
    from kvpolicy.commands.prompts import too_long
    from kvpolicy.evaluation.caches import opened_cache
    from kvpolicy.huggingface.report import report_of

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    inputs = {name: tensor.to(model.device) for name, tensor in tokens.items()}
    read = inputs["input_ids"].shape[1]
    if note := too_long(model, read):
        console.print(note)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    with opened_cache(model, policy, **extras) as cache:
        with prefill_progress(model, read, console):
            said = model.generate(
                **inputs, past_key_values=cache, streamer=streamer, num_beams=1, **sampling
            )
        written = said.shape[1] - read
        console.print(holdings(report_of(cache), read=read, written=written))
