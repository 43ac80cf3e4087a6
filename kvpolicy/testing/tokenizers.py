"""A tokenizer that needs no file: every byte of a text is a token."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@cache
def byte_tokenizer() -> PreTrainedTokenizerBase:
    """Return the tokenizer; it has 257 tokens, the last of which ends a text.

    >>> tokenizer = byte_tokenizer()
    >>> ids = tokenizer("Ada, 9")["input_ids"]
    >>> len(ids), tokenizer.decode(ids)
    (6, 'Ada, 9')
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: place for place, letter in enumerate(letters)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
