"""Loads the small model that ships with kvpolicy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAME = "needle"
"""The name of the model for `--model`."""

MODEL = Path(__file__).with_name("model")
"""The folder of the model and its tokenizer, for `from_pretrained`."""


def load(folder: Path = MODEL) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model, in float32 on the CPU and ready to answer, and its tokenizer.

    Another folder holds a model that was trained anew; nothing is ever downloaded.

    >>> model, tokenizer = load()
    >>> tokenizer.tokenize("password amber")
    ['password', 'amber']
    """
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", local_files_only=True)
    # AutoTokenizer gives models of type qwen2 the tokenizer of Qwen2, whatever the folder says.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return model, tokenizer
