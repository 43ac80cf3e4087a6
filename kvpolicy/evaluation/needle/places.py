"""Where words of a prompt are among the tokens of a model."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.needle.prompts import BOS_LENGTH

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_places(tokenizer: PreTrainedTokenizerBase, text: str, words: range) -> range:
    """Return the places of the tokens that some words of a text become.

    Words are counted from 1, as in `NeedlePrompt`. Tokens that begin a text are counted if the
    tokenizer adds them. Raises InvalidValueError if the tokenizer cannot tell where its tokens are.

    >>> from kvpolicy.evaluation import needle
    >>> _, tokenizer = needle.load()
    >>> token_places(tokenizer, "password ada amber lemon oak .", range(3, 6))
    range(3, 6)
    """
    if not tokenizer.is_fast:
        raise InvalidValueError(
            f"the tokenizer of {tokenizer.name_or_path!r} does not say where in a text its tokens "
            "are. Use a model with a fast tokenizer (tokenizer.json)."
        )
    lengths = [len(word) + 1 for word in text.split(" ")]  # with the blank behind it
    ends = list(accumulate(lengths, initial=0))
    start, stop = ends[words.start - BOS_LENGTH], ends[words.stop - BOS_LENGTH] - 1
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    found = [place for place, (low, high) in enumerate(offsets) if low < stop and high > start]
    return range(found[0], found[-1] + 1)
