"""A model that reads questions of one length and answers them, with whatever cache it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import torch
from jaxtyping import Int
from torch import Tensor

from kvpolicy.huggingface.cache_argument import handed

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

BATCH = 8
"""How many questions are answered at once."""


class Question(Protocol):
    """A text that ends in a question, and the answer that is expected."""

    @property
    def text(self) -> str:
        """What the model reads."""

    @property
    def answer(self) -> str:
        """What it should say, and nothing else."""


def batches(questions: Sequence[Question]) -> list[Sequence[Question]]:
    """Cut the questions into the portions in which they are asked."""
    return [questions[start : start + BATCH] for start in range(0, len(questions), BATCH)]


@attrs.frozen
class Reader:
    """A model and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def encode(self, questions: Sequence[Question]) -> Int[Tensor, "B T"]:
        """Return the tokens of questions that are all equally long."""
        texts = [question.text for question in questions]
        ids = self.tokenizer(texts, return_tensors="pt")["input_ids"]
        return torch.as_tensor(ids).to(self.model.device)

    def words(self, question: Question) -> tuple[str, ...]:
        """Return a question token by token."""
        return tuple(str(self.tokenizer.decode(token)) for token in self.encode([question])[0])

    def answer(self, questions: Sequence[Question], cache: Cache) -> list[str]:
        """Answer by greedy decoding, with room for one token more than the longest answer has.

        That token is the end of text, or a word too many, which makes the answer wrong.
        """
        ids = self.encode(questions)
        expected = [question.answer for question in questions]
        lengths = map(len, self.tokenizer(expected, add_special_tokens=False)["input_ids"])
        generate: Any = self.model.generate
        said = generate(
            ids,
            attention_mask=torch.ones_like(ids),
            **handed(cache, to=generate),
            max_new_tokens=max(lengths) + 1,
            do_sample=False,
        )
        texts = self.tokenizer.batch_decode(said[:, ids.shape[1] :], skip_special_tokens=True)
        return [str(text) for text in texts]
