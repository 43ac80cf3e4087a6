"""From a sample to tokens: the part that is evicted at its end, and the part that is asked then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs
import torch
from jaxtyping import Int
from torch import Tensor

from kvpolicy.errors import InvalidValueError
from kvpolicy.task import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QuestionPlace: TypeAlias = Literal["inside", "outside"]
"""Whether the question is part of what is evicted, or is asked after the eviction."""


@attrs.frozen(kw_only=True, eq=False)
class Prompt:
    """Token ids: `context` is read in one forward, `question` after it, token by token.

    A conversation is all context; `scored` are the places at which the agent's turns begin and end.
    """

    context: Int[Tensor, "1 T"]
    question: Int[Tensor, "1 Q"]
    scored: tuple[tuple[int, int], ...] = ()

    @property
    def tokens(self) -> int:
        """How many tokens the prompt has."""
        return self.context.shape[1] + self.question.shape[1]

    @property
    def ids(self) -> list[int]:
        """All token ids, in order."""
        found: list[int] = torch.cat([self.context, self.question], dim=1)[0].tolist()
        return found


@attrs.frozen(kw_only=True)
class PromptFormat:
    """How samples are written as prompts.

    - `chat`: use the chat template where a sample does not say otherwise.
    - `question`: inside what is evicted (as in ReST-KV, SnapKV and PyramidKV), or asked after the
      context was evicted (as in kvpress). The prompt has the same tokens either way. A sample may
      want its question outside.
    - `longest`: cut a longer text in the middle to so many tokens, before the chat template
      (as in LongBench); None cuts nothing.
    """

    tokenizer: PreTrainedTokenizerBase
    chat: bool = False
    question: QuestionPlace = "inside"
    longest: int | None = None

    def prompt(self, sample: Sample) -> Prompt:
        """Return the tokens of a sample.

        Raises InvalidValueError if the text is empty, if a question is wanted outside and there is
        none, or if there is no chat template.
        """
        chat = bool(sample.messages) or (self.chat if sample.chat is None else sample.chat)
        text, question = self._chat(sample) if chat else self._plain(sample)
        ids = self.ids(text, special=not chat)
        if not text.strip() or not ids:
            raise InvalidValueError(f"sample {sample.name!r} is empty. Give it a text to read.")
        split = len(ids)
        if self.place_of(sample) == "outside":
            before = self.ids(text[: _place(sample, text, question)], special=not chat)
            split = min(common(ids, before), len(ids) - 1)
            if not split:
                raise InvalidValueError(
                    f"sample {sample.name!r} has no context in front of its question, so nothing "
                    "can be evicted before it is asked. Put the question inside."
                )
        return Prompt(
            context=torch.tensor([ids[:split]]), question=torch.tensor([ids[split:]]).long()
        )

    def place_of(self, sample: Sample) -> QuestionPlace:
        """Return where the question of a sample is asked."""
        return "outside" if sample.outside else self.question

    def _plain(self, sample: Sample) -> tuple[str, str]:
        return self._cut(
            sample.context + sample.question
        ) + sample.cue, sample.question + sample.cue

    def _chat(self, sample: Sample) -> tuple[str, str]:
        messages = [dict(each) for each in sample.messages]
        question = messages[-1]["content"] if messages else sample.question
        if not messages:
            messages = [{"role": "user", "content": self._cut(sample.context + sample.question)}]
        text = self.templated(sample, messages, generation=True)
        return text + sample.cue, question.strip()

    def templated(
        self, sample: Sample, messages: Sequence[Mapping[str, str]], *, generation: bool = False
    ) -> str:
        """Return messages of a sample in the chat template.

        `generation` adds what begins an answer. Raises InvalidValueError if there is no template.
        """
        if self.tokenizer.chat_template is None:
            raise InvalidValueError(
                f"sample {sample.name!r} needs a chat template, and the tokenizer of "
                f"{self.tokenizer.name_or_path!r} has none. Leave the chat template out, or choose "
                "a model that was made for chat."
            )
        template: Any = self.tokenizer.apply_chat_template
        text: str = template(list(messages), tokenize=False, add_generation_prompt=generation)
        return text

    def _cut(self, text: str) -> str:
        """Leave the middle out: half of `longest` tokens from the front, half from the end.

        Tokens that begin or end a text are counted, as LongBench does.
        """
        if self.longest is None:
            return text
        ids = self.ids(text, special=True)
        if len(ids) <= self.longest:
            return text
        half = max(1, self.longest // 2)
        parts = self.tokenizer.batch_decode([ids[:half], ids[-half:]], skip_special_tokens=True)
        return "".join(parts)

    def ids(self, text: str, *, special: bool) -> list[int]:
        """Return the token ids of a text; `special` adds those that begin or end one."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids


def _place(sample: Sample, text: str, question: str) -> int:
    """Return where the question begins in the text."""
    if not question.strip():
        raise InvalidValueError(
            f"sample {sample.name!r} has no question apart from its context, so it cannot be "
            "asked outside. Give context and question, or put the question inside."
        )
    place = text.rfind(question)
    if place < 0:
        raise InvalidValueError(
            f"the question of sample {sample.name!r} does not stand in its prompt as it was given: "
            "the text was cut, or the chat template changes it. Put the question inside."
        )
    return place


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many ids are the same at the beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))
