"""A prompt as tokens, each with its piece of the text, and where in it a text stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch
from jaxtyping import Int
from torch import Tensor

from kvpolicy.errors import InvalidValueError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@attrs.frozen(kw_only=True, eq=False)
class TokenizedPrompt:
    """Token ids, and for each token its piece of the text; the pieces follow one another."""

    ids: Int[Tensor, "1 T"]
    pieces: tuple[str, ...]

    def places_of(self, text: str) -> list[range]:
        """Return the tokens of each place where a text stands, whatever the case of its letters.

        >>> prompt = TokenizedPrompt(ids=torch.tensor([[1, 2, 3]]), pieces=("a red", " fo", "x"))
        >>> prompt.places_of("Red fox")
        [range(0, 3)]
        """
        whole, wanted = "".join(self.pieces).lower(), text.strip().lower()
        ends: list[int] = []
        for piece in self.pieces:
            ends.append((ends[-1] if ends else 0) + len(piece))
        found, start = [], whole.find(wanted) if wanted else -1
        while start >= 0:
            stop = start + len(wanted)
            first = next(place for place, end in enumerate(ends) if end > start)
            last = next(place for place, end in enumerate(ends) if end >= stop)
            found.append(range(first, last + 1))
            start = whole.find(wanted, stop)
        return found


def tokenized(
    tokenizer: PreTrainedTokenizerBase, text: str, *, chat: bool = False
) -> TokenizedPrompt:
    """Return a prompt; with `chat` it is a user's turn.

    Raises InvalidValueError if `chat` is set and there is no chat template, or if the tokenizer
    cannot say where its tokens stand.
    """
    if chat:
        if tokenizer.chat_template is None:
            raise InvalidValueError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template. Leave out "
                "--chat, or choose a chat model."
            )
        template: Any = tokenizer.apply_chat_template
        text = template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
    if not tokenizer.is_fast:
        raise InvalidValueError(
            f"the tokenizer of {tokenizer.name_or_path!r} does not say where its tokens stand in "
            "the text. Choose a model with tokenizer.json."
        )
    found = tokenizer(text, add_special_tokens=not chat, return_offsets_mapping=True)
    ids: list[int] = found["input_ids"]
    pieces, done = [], 0
    for token, (start, stop) in zip(ids, found["offset_mapping"], strict=True):
        # A token that was added stands nowhere. Of tokens that share a character, the last has it.
        pieces.append(text[done:stop] if stop > start else str(tokenizer.decode([token])))
        done = max(done, stop)
    return TokenizedPrompt(ids=torch.tensor([ids]), pieces=tuple(pieces))
