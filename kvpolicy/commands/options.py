"""Options that several commands have, each with its type and its help."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import typer

Model: TypeAlias = Annotated[
    str, typer.Option(help="A folder with a checkpoint, or the id of one on the Hub.")
]
Dtype: TypeAlias = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="The dtype of the weights; auto is that of the checkpoint."),
]
Device: TypeAlias = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="auto is a GPU if there is one.")
]
Attention: TypeAlias = Annotated[
    str | None,
    typer.Option(help="An attention of transformers: sdpa, eager, flash_attention_2, ..."),
]
TrustRemoteCode: TypeAlias = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]
PromptFile: TypeAlias = Annotated[
    str | None, typer.Option(help="A file with the prompt; - reads standard input.")
]
Chat: TypeAlias = Annotated[
    bool, typer.Option("--chat", help="Put prompts into the model's chat template.")
]
