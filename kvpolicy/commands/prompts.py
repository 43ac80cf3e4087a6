"""Reads the prompt of `kvpolicy generate`, and tokenizes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from kvpolicy.commands.text import STDIN, read_text
from kvpolicy.errors import InvalidValueError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def read_prompt(text: str | None, file: str | None) -> str:
    """Return the text, or the contents of the file. The file '-' is standard input.

    Raises InvalidValueError if there is no prompt, or more than one, or if it is not UTF-8 text.
    """
    if text is not None and file is not None:
        raise InvalidValueError("--prompt and --prompt-file were both given. Give only one.")
    if text is None and file is None:
        raise InvalidValueError(
            "there is no prompt. Give --prompt TEXT or --prompt-file FILE (- is standard input)."
        )
    prompt = text if text is not None else read_text(file or STDIN, "--prompt-file")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InvalidValueError(
            f"the prompt is not UTF-8 text (at character {error.start}). Give UTF-8 text."
        ) from error
    if not prompt.strip():
        raise InvalidValueError("the prompt is empty. Give a prompt with some text.")
    return prompt


def encoded(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], *, chat: bool
) -> dict[str, Int[Tensor, "1 T"]]:
    """Return the token ids and the attention mask of messages, each with a `role` and a `content`.

    Without `chat` there is one message, and its text is continued.

    Raises InvalidValueError if `chat` is set and the tokenizer has no chat template.
    """
    if not chat:
        tokens = tokenizer(messages[-1]["content"], return_tensors="pt")
    elif tokenizer.chat_template is None:
        raise InvalidValueError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template. Leave out --chat, "
            "or choose a chat model."
        )
    else:
        tokens = tokenizer.apply_chat_template(
            [dict(each) for each in messages],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def too_long(model: PreTrainedModel, tokens: int) -> str | None:
    """Return a warning if a prompt is longer than the model's longest context, else None."""
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if longest is None or tokens <= longest:
        return None
    return (
        f"The prompt has {tokens:,} tokens, but the model's longest context is {longest:,}. "
        "The text may be poor."
    )
