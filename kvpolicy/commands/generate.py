"""`kvpolicy generate`: continues a prompt with a Hugging Face model and an evicted cache."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from kvpolicy.commands.chosen import FULL, chosen
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
from kvpolicy.errors import InvalidValueError

COLDEST = 1e-3
"""The smallest temperature above 0. Logits divided by less would overflow."""

app = typer.Typer(add_completion=False)


@app.command()
def generate(
    model: Model,
    recipe: Annotated[
        str | None,
        typer.Option(help=f"See `kvpolicy list recipe`; {FULL} keeps the full cache."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="In place of a recipe: a JSON file with what Policy.to_dict returns."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Positions per head (1024), a share (25%) or an error (within:2%). Without it: "
            "1024, or that of the file.",
            show_default=False,
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="An option of a part or a setting: scorer.window=64, storage.bits=4, sinks=4.",
        ),
    ] = None,
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

    Writes the text to standard output, and a report of the cache to standard error. In a terminal
    --chat asks for more prompts, until ctrl-D.
    """
    from kvpolicy.commands.checkpoints import Checkpoint
    from kvpolicy.commands.conversation import Conversation, asked, is_terminal
    from kvpolicy.commands.prompts import read_prompt

    with plugins_print_to_stderr():
        choice = chosen(
            recipe=recipe,
            file=policy,
            budget=budget,
            changes=changes or [],
            prefill=prefill,
            storage=storage,
        )
    interactive = chat and prompt_file is None and is_terminal()
    texts = [] if interactive and prompt is None else [read_prompt(prompt, prompt_file)]
    checkpoint = Checkpoint(
        name=model,
        dtype=dtype,
        device=device,
        attention=attention,
        trust_remote_code=trust_remote_code,
    )
    sampling = _sampling(temperature, seed) | {"max_new_tokens": max_new_tokens}
    tokenizer = checkpoint.tokenizer()
    conversation = Conversation(
        tokenizer=tokenizer, choice=choice, sampling=sampling, in_template=chat
    )
    conversation.check(texts)
    conversation.hold(checkpoint.model(), [*texts] if not interactive else asked(texts))


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
